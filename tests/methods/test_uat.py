"""UAT: three terms and what each row is attacked with, against a loop over single images; limits; stop-gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.uat import Uat
from atbench.models import Frozen
from tests.support import reference, worlds

HALF = {"labelled": 0.5, "extra": 0.5}
#: (online, fixed, supervised)
MODES = [(1.0, 0.0, "adversarial"), (0.0, 0.7, "adversarial"), (3.0, 0.7, "adversarial"), (2.0, 0.7, "clean")]
MODES += [(2.0, 0.0, "clean")]


def make(given: TrainData, *mode: Any, model: nn.Module | None = None, **changes: Any) -> Uat:
    method = Uat(model or worlds.cnn(), worlds.attack(**changes), *mode)
    method.setup(given)
    method.load_pretrained({"labeller": Frozen(worlds.linear(seed=7))})
    worlds.start(method, given)
    return method


def perturbed(given: TrainData, *mode: Any) -> tuple[Uat, Batch]:
    method = make(given, *mode)
    worlds.steps(method, given, 4)
    method.clock.epoch, method.clock.step = 2, 0
    return method, method.perturb(given.batch(2, 0))


@pytest.mark.parametrize("mode", MODES)
def test_attack_and_loss_are_those_of_a_slow_reference(mode: tuple[float, float, str]) -> None:
    online, fixed, supervised = mode
    given = worlds.data(**HALF)
    method, batch = perturbed(given, *mode)
    model, total = method.model, 0.0
    begin = [method.rng(stream).uniform(batch.x[:6]) * 0.1 for stream in ("search", "pool")]
    start = (batch.x + torch.cat(begin)).clamp(0, 1)
    for i in range(12):
        x, x_adv, labelled = batch.x[i : i + 1], start[i : i + 1], i < 6
        p = model(x).softmax(dim=1).detach()
        target = int(batch.y[i])
        by_label = supervised == "adversarial" if labelled else fixed > 0

        def objective(at: Tensor, p: Tensor = p, target: int = target, by_label: bool = by_label) -> Tensor:
            log_q = model(at).log_softmax(dim=1)
            return -log_q[0, target] if by_label else (p * (p.log() - log_q)).sum()

        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(objective(x_adv), x_adv)
            moved = x_adv.detach() + 0.04 * grad.sign()
            x_adv = torch.max(torch.min(moved, x + 0.1), x - 0.1).clip(0, 1)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-11)
        clean, adversarial = model(x), model(x_adv)
        if labelled:
            image = clean if supervised == "clean" else adversarial
            total += reference.ce(image, batch.y[i : i + 1])[0] / 12
        elif fixed:
            total += fixed * reference.ce(adversarial, batch.y[i : i + 1])[0] / 12
        total += online * reference.kl(clean, adversarial)[0] / 12
    assert method.loss(batch).total.item() == pytest.approx(total, abs=1e-12)


def test_fixed_targets_that_are_right_are_pgd_training_on_all_images_to_the_bit() -> None:
    given, method = worlds.data(**HALF), make(worlds.data(**HALF), 0.0, 1.0)
    hidden = worlds.source().train.take(worlds.source().split_indices()[1])
    assert given.pool is not None
    place = {row.numpy().tobytes(): int(y) for row, y in zip(hidden.x, hidden.y, strict=True)}
    method.labels.copy_(torch.tensor([place[row.numpy().tobytes()] for row in given.pool.x]))
    other = PgdAt(worlds.cnn(), worlds.attack())
    optimizers = [torch.optim.SGD(each.model.parameters(), lr=0.1) for each in (method, other)]
    worlds.start(other, given)
    for step in range(6):
        method.clock.epoch, method.clock.step = other.clock.epoch, other.clock.step = divmod(step, given.steps)
        batch = given.batch(*divmod(step, given.steps))
        ours, merged = method.perturb(batch), method.merge(batch)
        start = method.merged_start(batch)
        other.attack.begin = lambda x, eps, rng, start=start: start  # type: ignore[method-assign, misc]
        theirs = other.perturb(merged)
        assert torch.equal(ours.x_adv, theirs.x_adv)
        for each, images, optimizer in ((method, ours, optimizers[0]), (other, theirs, optimizers[1])):
            optimizer.zero_grad()
            each.loss(images).total.backward()
            optimizer.step()
    assert worlds.same(method.model.state_dict(), other.model.state_dict())


def test_without_pool_rows_fixed_targets_are_pgd_training_step_for_step() -> None:
    given = worlds.data(labelled=0.5, extra=0.0)
    method, other = make(given, 0.0, 1.0), PgdAt(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(method.model.state_dict(), other.model.state_dict())


def test_at_the_clean_image_the_smoothness_term_has_no_gradient() -> None:
    """KL(sg p ‖ p) is stationary, and nothing comes through its clean side."""
    given = worlds.data(**HALF)
    method, batch = perturbed(given, 1.0, 0.0)
    (ones,) = [torch.autograd.grad(method.loss(replace(batch, x_adv=batch.x)).total, list(method.model.parameters()))]
    method.online = 0.0
    without = torch.autograd.grad(method.loss(replace(batch, x_adv=batch.x)).total, list(method.model.parameters()))
    for a, b in zip(ones, without, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("online", [0.0, 5.0])
def test_no_gradient_passes_the_clean_side(online: float) -> None:
    """The gradient of the KL term is that of −Σ p log q with p a constant."""
    given = worlds.data(**HALF)
    method, batch = perturbed(given, online, 1.0)
    p = method.model(batch.x).softmax(dim=1).detach()
    parameters = list(method.model.parameters())
    log_q = method.model(batch.x_adv).log_softmax(dim=1)
    by_hand = -(log_q.gather(1, batch.y[:, None]).sum() + online * (p * log_q).sum()) / 12
    wanted = torch.autograd.grad(by_hand, parameters)
    for a, b in zip(torch.autograd.grad(method.loss(batch).total, parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_online_targets_need_no_labeller_and_fixed_ones_do() -> None:
    given = worlds.data(**HALF)
    assert make(given, 1.0, 0.0).pretraining() == {}
    (stage,) = make(given, 0.0, 1.0).pretraining().values()
    assert stage.method == {"_target_": "atbench.methods.standard.Standard"}
    method = Uat(worlds.cnn(), worlds.attack(), 0.0, 1.0)
    method.setup(given)
    with pytest.raises(IndexError):
        worlds.steps(method, given, 1)


def test_pool_rows_are_counted_right_where_they_agree_with_their_target() -> None:
    given = worlds.data(**HALF)
    method, batch = perturbed(given, 1.0, 0.0)
    assert batch.y[6:].tolist() == method.model(batch.x[6:]).argmax(dim=1).tolist()
    method, batch = perturbed(given, 0.0, 1.0)
    assert torch.equal(batch.y[6:], method.labels[batch.index[6:] - len(given.train)])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.supervised.*adversarial, clean"):
        Uat(worlds.cnn(), worlds.attack(), supervised="both")
    with pytest.raises(ConfigError, match=r"train\.extra_data\.labelled.*unlabelled pool"):
        Uat(worlds.cnn(), worlds.attack()).setup(worlds.data())


@pytest.mark.parametrize("mode", MODES[:3])
def test_contract(mode: tuple[float, float, str]) -> None:
    given = worlds.data(**HALF)
    method = make(given, *mode)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given, *mode), given)
    worlds.check_ranks(lambda share: make(share, *mode), **HALF)
