"""ELLE: the distance from a straight line at three random points, and ELLE-A's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atbench.data import Batch
from atbench.methods.elle import Elle
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero", "bn": "train"}


def make(network: nn.Module | None = None, **options: Any) -> tuple[Elle, Batch]:
    given = worlds.data()
    method = Elle(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def test_loss_is_the_formula() -> None:
    """The points leave the box, and the ball's radius is that of the attack; every example has a share of its own."""
    method, batch = make(weight=1000.0)
    batch = method.perturb(batch)
    rng = method.rng("line")
    a, b = batch.x + 0.1 * rng.uniform(batch.x), batch.x + 0.1 * rng.uniform(batch.x)
    share = (rng.uniform(batch.x[:, 0, 0, 0]) + 1) / 2
    assert (a < 0).any() or (a > 1).any()
    assert share.unique().numel() == len(share) and 0 <= share.min() < 0.5 < share.max() <= 1
    values = []
    for i, s in enumerate(share.tolist()):
        points = (a[i], b[i], (1 - s) * a[i] + s * b[i])
        at_a, at_b, at_c = (reference.ce(method.model(x[None]), batch.y[i : i + 1])[0] for x in points)
        values.append((at_c - (1 - s) * at_a - s * at_b) ** 2)
    ce = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    error = reference.mean(values)
    assert error > 1e-12
    loss = method.loss(batch)
    assert loss.terms["error"].item() == pytest.approx(error, rel=1e-6)
    assert loss.total.item() == pytest.approx(ce + 1000 * error, rel=1e-9)


def test_no_gradient_is_stopped() -> None:
    network = worlds.cnn(activation="softplus")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    method, batch = make(network)
    batch = method.perturb(batch)
    loss = method.loss(batch)
    assert 1000 * loss.terms["error"] > 0.01
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_a_straight_loss_has_no_error() -> None:
    """Two classes, far on the wrong side: the loss is the margin, which is linear."""
    network = worlds.linear(classes=2)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([500.0, 0.0]))
    method, batch = make(network)
    wrong = Batch(batch.x, torch.ones_like(batch.y), batch.index)
    assert method.loss(method.perturb(wrong)).terms["error"] < 1e-20


def test_an_update_is_two_forwards_after_one_of_the_attack() -> None:
    method, batch = make(worlds.cnn(norm="batch"))
    seen: list[tuple[bool, int]] = []
    method.model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
    method.loss(method.perturb(batch))
    assert seen == [(True, 12), (True, 12), (True, 36)]


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"adaptive": True, "sensitivity": 1e9}])
def test_without_a_weight_it_is_fgsm_training_to_the_bit(options: dict[str, Any]) -> None:
    """And ELLE-A until the first jump."""
    given = worlds.data()
    method, other = (
        Elle(worlds.cnn(), worlds.attack(**ONE_STEP), **options),
        PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP)),
    )
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(dict(method.model.state_dict()), dict(other.model.state_dict()))


def test_the_weight_of_elle_a_follows_the_errors() -> None:
    """The authors' rule on the referee's series: against mean and deviation of all earlier errors, three at least."""
    method, _ = make(adaptive=True, weight=4000.0)
    weights, earlier, expected, now = [], [], [], 0.0
    for error in (1, 2, 1, 1.5, 9, 1, 1, 50, 60):
        method.adapt(torch.tensor(error, dtype=torch.float64))
        weights.append(method.weight_now.item())
        mean = sum(earlier) / max(len(earlier), 1)
        deviation = (sum((e - mean) ** 2 for e in earlier) / max(len(earlier), 1)) ** 0.5
        now = 4000.0 if len(earlier) > 2 and error > mean + 2 * deviation else 0.99 * now
        earlier.append(error)
        expected.append(now)
    assert weights == pytest.approx(expected, rel=1e-12)
    assert weights == pytest.approx([0, 0, 0, 0, 4000, 3960, 3920.4, 4000, 4000], rel=1e-12)


def test_the_weight_acts_from_the_next_step_on() -> None:
    method, batch = make(adaptive=True, weight=7.0)
    batch = method.perturb(batch)
    method.history.copy_(torch.tensor([5.0, -1.0, 0.0]))
    loss = method.loss(batch)
    assert loss.total.item() == loss.terms["ce"].item()
    method.after_update(batch)
    after = method.loss(batch)
    assert after.total.item() == pytest.approx((after.terms["ce"] + 7 * after.terms["error"]).item(), rel=1e-12)


def test_a_resumed_run_goes_on_with_its_errors() -> None:
    worlds.check_resume(
        lambda: Elle(worlds.cnn(), worlds.attack(**ONE_STEP), adaptive=True, sensitivity=0.1), worlds.data()
    )


def test_contract() -> None:
    method, batch = make()
    worlds.check_pure(method, batch)
    worlds.check_ranks(lambda given: Elle(worlds.cnn(), worlds.attack(**ONE_STEP)))
