"""TRADES: the KL of the formula with gradient through both sides, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from atbench.attacks import Objective, kl_from
from atbench.config.instantiate import build
from atbench.data import Batch, TrainData
from atbench.methods.standard import Standard
from atbench.methods.trades import Trades
from tests.support import reference, worlds
from tests.support.configs import resolved


def make(beta: float = 6.0, **changes: Any) -> tuple[Trades, TrainData, Batch]:
    given, method = worlds.data(), Trades(worlds.cnn(), worlds.attack(**{"start": "gaussian", **changes}), beta)
    worlds.start(method, given)
    return method, given, given.batch(0, 0)


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_loss_is_the_formula(beta: float) -> None:
    method, _, batch = make(beta)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce, kl = reference.mean(reference.ce(clean, batch.y)), reference.mean(reference.kl(clean, adversarial))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + beta * kl, abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["kl"].item() == pytest.approx(kl) and kl > 0


def test_gradient_flows_through_both_sides_of_the_kl() -> None:
    method, _, batch = make()
    batch = method.perturb(batch)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_kl_takes_the_clean_distribution_first() -> None:
    """K = 2 by hand, p ≠ q: the value of the swapped call is another."""
    p, q = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    by_hand = 0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6)
    method, zero = Trades(torch.nn.Identity(), worlds.attack()), torch.zeros(1, dtype=torch.long)
    kl, swapped = (
        method.loss(Batch(clean.log(), zero, zero, x_adv=adversarial.log())).terms["kl"].item()
        for clean, adversarial in ((p, q), (q, p))
    )
    assert kl == pytest.approx(by_hand, abs=1e-14) and abs(swapped - by_hand) > 0.1


def test_the_attack_raises_the_kl_to_the_clean_prediction() -> None:
    method, _, batch = make(steps=8)
    found = method.perturb(batch)
    noise = batch.with_adv(method.attack.begin(batch.x, 0.1, method.rng()))
    assert method.loss(found).terms["kl"] > 10 * method.loss(noise).terms["kl"]
    assert (found.x_adv - batch.x).abs().max() <= 0.1 + 1e-12 and found.x_adv.min() >= 0 and found.x_adv.max() <= 1


def test_from_the_image_itself_the_attack_has_no_gradient() -> None:
    """Hence the noise. (Rounding leaves 1e-17, whose sign L∞ would step along; L2 does not blow it up.)"""
    method, _, batch = make(norm="l2", start="zero", eps=0.5, step_size=0.1, steps=1)
    x = batch.x.clone().requires_grad_()
    value, _ = Objective(method.model, kl_from, method.probabilities(batch.x))(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert grad.abs().max() < 1e-15
    assert (method.perturb(batch).x_adv - batch.x).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["trades", "hat", "score", "dkl"])
def test_its_l2_attack_is_that_of_the_authors(name: str) -> None:
    """trades.py, `distance='l_2'`: δ into the box, then into the ball. On black images the other order is shorter."""
    search = build(resolved(f"method={name}", "attack.norm=l2", "attack.eps=0.5").attack, "attack")
    x, delta = torch.zeros(2, 1, 8, 8, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    expected = delta.clamp(0, 1)
    expected *= 0.5 / expected.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(search.ball.project(x, x + delta, 0.5), expected)
    assert search.ball.norm(search.ball.project(x, x + delta, 0.5)).min() > 0.499


def test_without_a_radius_the_kl_vanishes() -> None:
    method, _, batch = make(eps=0.0)
    assert method.loss(method.perturb(batch)).terms["kl"].abs() < 1e-15


def test_beta_zero_is_standard_training_to_the_bit() -> None:
    given = worlds.data()
    trades = Trades(worlds.cnn(norm="none"), worlds.attack(start="gaussian"), beta=0.0)
    standard = Standard(worlds.cnn(norm="none"), worlds.attack())
    worlds.steps(trades, given, 8)
    worlds.steps(standard, given, 8)
    assert worlds.same(worlds.snapshot(trades), worlds.snapshot(standard))


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, _, batch = make()
    before = worlds.snapshot(method)
    first, second = method.perturb(batch), method.perturb(batch)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(method.loss(first).total, method.loss(second).total)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
