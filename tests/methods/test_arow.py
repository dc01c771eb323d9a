"""ARoW: a KL weighted by the doubt on the adversarial image, gradients through all of it, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from atbench.attacks import kl_from
from atbench.data import Batch
from atbench.methods.arow import Arow
from atbench.methods.mart import Mart
from atbench.methods.standard import Standard
from tests.support import reference, worlds
from tests.support.configs import resolved

SMOOTHING = 0.2


def make(beta: float = 7.0, **changes: Any) -> tuple[Arow, Batch]:
    given = worlds.data()
    method = Arow(worlds.cnn(), worlds.attack(**changes), beta)
    with torch.no_grad():
        method.model.head.weight *= 20  # so that the weights differ
    method.risk = nn.CrossEntropyLoss(reduction="none", label_smoothing=SMOOTHING)
    worlds.start(method, given)
    return method, method.perturb(given.batch(0, 0))


def slow(method: Arow, batch: Batch) -> tuple[float, float]:
    """The two terms, example by example: (1 − s)(−log p_y) + s · mean_k (−log p_k), and the weighted KL."""
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    natural, weighted = [], []
    divergence = reference.kl(clean, adversarial)
    for i, y in enumerate(batch.y.tolist()):
        log_p, log_q = (reference.log_softmax(logits[i].tolist()) for logits in (clean, adversarial))
        natural.append(-(1 - SMOOTHING) * log_p[y] - SMOOTHING * reference.mean(log_p))
        weighted.append(divergence[i] * (1 - math.exp(log_q[y])))
    return reference.mean(natural), reference.mean(weighted)


@pytest.mark.parametrize("beta", [0.0, 7.0])
def test_loss_is_the_formula(beta: float) -> None:
    method, batch = make(beta)
    natural, weighted = slow(method, batch)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(natural + beta * weighted, abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(natural) and loss.terms["kl"].item() == pytest.approx(weighted)
    assert weighted > 1e-3


def test_nothing_is_detached() -> None:
    method, batch = make()
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_the_weight_is_that_of_the_adversarial_image() -> None:
    """K = 2 by hand: doubt where p_y(x') is small, where MART has that of x."""
    p, q = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    kl, zero = 0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6), torch.zeros(1, dtype=torch.long)
    batch = Batch(p.log(), zero, zero, x_adv=q.log())
    ours, marts = (cls(nn.Identity(), worlds.attack()).loss(batch).terms["kl"].item() for cls in (Arow, Mart))
    assert ours == pytest.approx(0.6 * kl, abs=1e-14) and marts == pytest.approx(0.1 * kl, abs=1e-6)


def test_images_whose_attack_is_seen_through_carry_no_kl() -> None:
    """p_y(x') = 1: no robust term, and no gradient of it, however far x is."""
    logits = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.long)
    loss = Arow(nn.Identity(), worlds.attack()).loss(Batch(logits, y, y, x_adv=sure))
    assert loss.terms["kl"].item() == 0.0
    (grad,) = torch.autograd.grad(loss.total, logits)
    torch.testing.assert_close(grad, logits.softmax(dim=1) - torch.tensor([[1.0, 0, 0]]), rtol=0, atol=1e-15)


def test_the_attack_is_a_slow_search_for_the_kl_from_a_uniform_start() -> None:
    method, batch = make()
    expected = method.attack.begin(batch.x, 0.1, method.rng())
    assert (expected - batch.x).abs().max() > 0.05
    p = method.model(batch.x).softmax(dim=1).detach()
    for _ in range(3):
        expected = expected.detach().requires_grad_()
        (grad,) = torch.autograd.grad(kl_from(method.model(expected), p).sum(), expected)
        moved = expected.detach() + 0.04 * grad.sign()
        expected = torch.max(torch.min(moved, batch.x + 0.1), batch.x - 0.1).clamp(0, 1)
    torch.testing.assert_close(batch.x_adv, expected, rtol=0, atol=1e-12)


def test_beta_zero_is_standard_training_to_the_bit() -> None:
    given = worlds.data()
    arow, standard = Arow(worlds.cnn(), worlds.attack(), beta=0.0), Standard(worlds.cnn(), worlds.attack())
    worlds.steps(arow, given, 8)
    worlds.steps(standard, given, 8)
    assert worlds.same(worlds.snapshot(arow), worlds.snapshot(standard))


def test_labels_are_smoothed_and_can_be_left_whole() -> None:
    assert resolved("method=arow").train.label_smoothing == SMOOTHING
    assert resolved("method=arow", "train.label_smoothing=0").train.label_smoothing == 0


def test_contract() -> None:
    given = worlds.data()
    method, _ = make()
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
