"""rotation_ss: five copies in one forward, two heads, what is attacked, and PGD-AT where the weight is zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, cross_entropy
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.rotation_ss import RotationSs
from atbench.models import Ensemble, attack_mode
from tests.support import worlds


def make(given: TrainData, *options: Any, norm: str = "none", **changes: Any) -> RotationSs:
    method = RotationSs(worlds.cnn(norm=norm), worlds.attack(**{"clip_start": False, **changes}), *options)
    torch.manual_seed(3)
    method.setup(given)
    method.double()
    worlds.start(method, given)
    return method


def perturbed(*options: Any, **changes: Any) -> tuple[RotationSs, Batch]:
    given = worlds.data()
    method = make(given, *options, **changes)
    return method, method.perturb(given.batch(0, 0))


@pytest.mark.parametrize("attacked", [True, False])
def test_attack_and_loss_are_those_of_a_slow_reference(attacked: bool) -> None:
    """Every image by itself: its class where it is the first copy, its turn where it is another."""
    method, batch = perturbed(0.8, attacked)
    model, total = method.model, torch.zeros((), dtype=torch.float64)
    found = torch.cat([batch.x_adv, batch.aux["rotated"]])
    for copy in range(5):
        k = max(copy - 1, 0)
        noise = 0.1 * method.rng(f"copy{copy}").uniform(batch.x)
        for i in range(12):
            x = torch.rot90(batch.x[i : i + 1], k, (2, 3))
            y = batch.y[i : i + 1] if copy == 0 else torch.tensor([k])

            def logits(at: Tensor, first: bool = copy == 0) -> Tensor:
                return model(at) if first else method.rotation_head(model.features(at))

            x_adv = x + noise[i : i + 1]
            for _ in range(3):
                x_adv = x_adv.detach().requires_grad_()
                (grad,) = torch.autograd.grad(-logits(x_adv).log_softmax(1)[0, y], x_adv, torch.ones(1))
                step = 0.04 * grad.sign() if attacked or copy == 0 else 0.0
                x_adv = torch.max(torch.min(x_adv.detach() + step, x + 0.1), x - 0.1).clip(0, 1)
            torch.testing.assert_close(found[12 * copy + i][None], x_adv, rtol=0, atol=1e-11)
            total = total - (1 / 12 if copy == 0 else 0.8 / 48) * logits(x_adv).log_softmax(1)[0, y].sum()
    loss = method.loss(batch).total
    torch.testing.assert_close(loss, total, rtol=0, atol=1e-12)
    parameters = list(method.parameters())
    for a, b in zip(*(torch.autograd.grad(each, parameters) for each in (loss, total)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_attack_climbs_the_outer_loss() -> None:
    """With batch statistics the five copies share a gradient: that of B times the loss, to scale."""
    given = worlds.data(worlds.source(inset=0.3))
    method = make(given, 0.8, norm="batch", bn="batch", steps=1, start="zero")
    batch = given.batch(0, 0)
    found = method.perturb(batch)
    copies = torch.cat([batch.x, *(batch.x.rot90(k, (2, 3)) for k in range(4))]).requires_grad_()
    turns = torch.arange(4).repeat_interleave(12)
    with attack_mode(method, "batch"):
        logits, rotations = method.model(copies)[:12], method.rotation_head(method.model.features(copies)[12:])
    loss = cross_entropy(logits, batch.y).mean() + 0.8 * cross_entropy(rotations, turns).mean()
    (grad,) = torch.autograd.grad(loss, copies)
    clear = grad.abs() > 1e-12
    moved = torch.cat([found.x_adv, found.aux["rotated"]]) - copies.detach()
    torch.testing.assert_close(moved[clear], 0.04 * grad[clear].sign(), rtol=0, atol=1e-12)


def test_turned_back_every_copy_is_the_image() -> None:
    method, batch = perturbed(0.5, eps=0.0, step_size=0.0)
    for k, part in enumerate(batch.aux["rotated"].split(12)):
        assert torch.equal(part.rot90(-k, (2, 3)), batch.x)
        assert batch.aux["turns"][12 * k : 12 * k + 12].tolist() == [k] * 12
    left = batch.x[:, :, :, 0]
    assert torch.equal(batch.aux["rotated"][12:24][:, :, -1, :], left), "counter-clockwise: left becomes bottom"
    assert torch.equal(batch.x_adv, batch.x) and method.rotation_head.out_features == 4


def test_without_weight_it_is_pgd_training() -> None:
    """Up to the last digits: a product of 60 rows sums in another order than one of 12."""
    given = worlds.data()
    method, other = make(given, 0.0), worlds.cnn()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (method, other)]
    for step in range(5):
        method.clock.step = step
        batch = given.batch(0, step % given.steps)
        perturbed = method.perturb(batch)
        x_adv = method.attack(Objective(other, cross_entropy, batch.y), batch.x, rng=method.rng("copy0"))
        torch.testing.assert_close(perturbed.x_adv, x_adv, rtol=0, atol=1e-14)
        loss, wanted = method.loss(perturbed).total, cross_entropy(other(x_adv), batch.y).mean()
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-14)
        for optimizer, value in zip(optimizers, (loss, wanted), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert all(
            parameter.grad is None or not parameter.grad.any() for parameter in method.rotation_head.parameters()
        )


def test_one_forward_of_five_batches_a_step() -> None:
    given = worlds.data()
    method, seen = make(given, norm="batch", bn="train"), []
    first = method.model.stages[0]
    first.register_forward_pre_hook(lambda layer, inputs: seen.append((len(inputs[0]), layer.training)))
    method.loss(method.perturb(given.batch(0, 0)))
    assert seen == [(60, True)] * 4


def test_the_head_is_trained_and_comes_back_with_the_state() -> None:
    given = worlds.data()
    method, fresh = make(given), make(given)
    worlds.steps(method, given, 3)
    assert not torch.equal(method.rotation_head.weight, fresh.rotation_head.weight)
    fresh.load_state_dict(method.state_dict())
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(fresh))
    assert list(method.groups()) == ["model", "rotation_head"]


def test_what_has_no_features_or_no_quarter_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="rotation head"):
        RotationSs(Ensemble([worlds.cnn(), worlds.cnn()]), worlds.attack())
    oblong = worlds.data(worlds.source(shape=(1, 8, 12)))
    with pytest.raises(ConfigError, match=r"8×12.*square"):
        RotationSs(worlds.cnn(shape=(1, 8, 12)), worlds.attack()).setup(oblong)


def test_contract() -> None:
    given = worlds.data()
    method = make(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given), given)
    worlds.check_ranks(make)
