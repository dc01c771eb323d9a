"""PASS: its own predictions as targets, one attack a part, the start, the order of forwards, the limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.pass_ import Pass
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

HALF = {"labelled": 0.5, "extra": 0.5}
START: dict[str, Any] = {"start": "clipped_gaussian"}


def make(given: TrainData, weight: float = 0.1, model: nn.Module | None = None, **changes: Any) -> Pass:
    method = Pass(model or worlds.cnn(), worlds.attack(**{**START, **changes}), weight)
    method.setup(given)
    worlds.start(method, given)
    return method


def perturbed(weight: float = 0.3) -> tuple[Pass, Batch]:
    given = worlds.data(**HALF)
    method = make(given, weight, worlds.linear())
    method.clock.epoch, method.clock.step = 2, 0
    return method, method.perturb(given.batch(2, 0))


def test_attack_and_loss_are_those_of_a_slow_reference() -> None:
    method, batch = perturbed()
    model, extra = method.model, batch.extra
    assert extra is not None
    predicted = model(extra.x).argmax(dim=1)
    assert torch.equal(batch.aux["pool_y"], predicted) and len(predicted.unique()) > 1
    parts = (
        (batch.x, batch.y, batch.x_adv, "search", 1.0),
        (extra.x, predicted, batch.aux["pool_adv"], "pool", 0.3),
    )
    total = 0.0
    for images, targets, found, stream, weight in parts:
        noise = (0.1 / 4 * method.rng(stream).normal(images)).clamp(-0.05, 0.05)
        for i in range(len(images)):
            x, y = images[i : i + 1], targets[i : i + 1]
            x_adv: Tensor = (x + noise[i : i + 1]).clamp(0, 1)
            for _ in range(3):
                x_adv = x_adv.detach().requires_grad_()
                (grad,) = torch.autograd.grad(-model(x_adv).log_softmax(1)[0, y], x_adv, torch.ones(1))
                x_adv = torch.max(torch.min(x_adv.detach() + 0.04 * grad.sign(), x + 0.1), x - 0.1).clip(0, 1)
            torch.testing.assert_close(found[i : i + 1], x_adv, rtol=0, atol=1e-11)
            total += weight * reference.ce(model(x_adv), y)[0] / len(images)
    assert method.loss(batch).total.item() == pytest.approx(total, abs=1e-12)
    exact, measured = reference.slopes(model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_the_start_is_gaussian_within_half_of_the_ball() -> None:
    x = torch.full((4, 1, 50, 50), 0.5, dtype=torch.float64)
    for norm, eps in (("linf", 0.1), ("l2", 2.0)):
        attack = GradientAttack(norm, eps, steps=0, step_size=0.1, start="clipped_gaussian")
        delta = attack.begin(x, eps, worlds.draws()) - x
        assert float(attack.ball.norm(delta).max()) == pytest.approx(eps / 2)
    delta = GradientAttack("linf", 0.1, 0, 0.1, **START).begin(x, 0.1, worlds.draws()) - x
    inside = delta.abs() < 0.05 - 1e-12
    assert inside.double().mean() == pytest.approx(0.9545, abs=0.01)  # within two deviations
    assert float(delta[inside].std()) == pytest.approx(0.1 / 4 * 0.8796, rel=0.03)  # of a normal cut at two deviations
    edge = GradientAttack("linf", 0.1, 0, 0.1, **START).begin(torch.ones_like(x), 0.1, worlds.draws())
    assert float(edge.max()) == 1.0


@pytest.mark.parametrize("extra", [0.0, 0.5])
def test_without_weight_or_pool_it_is_pgd_training_on_the_labelled_rows_to_the_bit(extra: float) -> None:
    given = worlds.data(labelled=0.5, extra=extra)
    method, other = make(given, 0.0 if extra else 0.1), PgdAt(worlds.cnn(), worlds.attack(**START))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(method.model.state_dict(), other.model.state_dict())


def test_every_forward_is_of_one_part_in_train_mode() -> None:
    """k + 1 forwards of each part, and one of the pool for its targets: 9 with k = 3, none of them joint."""
    given, model = worlds.data(labelled=0.5, extra=4 / 12), worlds.cnn(norm="batch")
    method, seen = make(given, model=model, bn="train"), []
    model.register_forward_pre_hook(lambda net, inputs: seen.append((len(inputs[0]), net.training)))
    method.loss(method.perturb(given.batch(0, 0)))
    assert seen == [(4, True), *[(8, True)] * 3, *[(4, True)] * 3, (8, True), (4, True)]


def test_targets_follow_the_network() -> None:
    given = worlds.data(**HALF)
    method, before = make(given), []
    for _ in range(2):
        before.append(method.perturb(given.batch(0, 0)).aux["pool_y"])
        with torch.no_grad():
            method.model.head.bias[0] += 100
    assert not torch.equal(*before) and (before[1] == 0).all()


def test_without_a_pool_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.extra_data\.labelled.*unlabelled pool"):
        Pass(worlds.cnn(), worlds.attack()).setup(worlds.data())


def test_contract() -> None:
    given = worlds.data(**HALF)
    method = make(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert batch.extra is not None
    assert worlds.legal(method.attack, batch.extra.x, batch.aux["pool_adv"], 0.1)
    worlds.check_resume(lambda: make(given), given)
    worlds.check_ranks(make, **HALF)
