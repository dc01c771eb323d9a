"""MART: boosted cross-entropy, a KL weighted by doubt, and gradients through all of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from atbench.data import Batch
from atbench.methods.mart import Mart, best_wrong
from tests.support import reference, worlds


def make(beta: float = 5.0, classes: int = 3, batch_size: int = 12, **changes: Any) -> tuple[Mart, Batch]:
    given = worlds.data(worlds.source(classes=classes), batch_size)
    method = Mart(worlds.cnn(classes=classes), worlds.attack(**{"start": "gaussian", **changes}), beta)
    worlds.start(method, given)
    return method, method.perturb(given.batch(0, 0))


def slow(method: Mart, batch: Batch) -> tuple[float, float]:
    """The two terms, example by example."""
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    boosted, weighted = [], []
    divergence = reference.kl(clean, adversarial)
    for i, y in enumerate(batch.y.tolist()):
        q = [math.exp(v) for v in reference.log_softmax(adversarial[i].tolist())]
        p = math.exp(reference.log_softmax(clean[i].tolist())[y])
        boosted.append(-math.log(q[y]) - math.log(1.0001 - max(v for k, v in enumerate(q) if k != y)))
        weighted.append(divergence[i] * (1.0000001 - p))
    return reference.mean(boosted), reference.mean(weighted)


@pytest.mark.parametrize("beta", [0.0, 5.0])
@pytest.mark.parametrize("batch_size", [1, 12])
def test_loss_is_the_formula(beta: float, batch_size: int) -> None:
    method, batch = make(beta, batch_size=batch_size)
    boosted, weighted = slow(method, batch)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(boosted + beta * weighted, abs=1e-12)
    assert loss.terms["bce"].item() == pytest.approx(boosted) and loss.terms["kl"].item() == pytest.approx(weighted)


def test_nothing_is_detached() -> None:
    """The slope counts the weight 1 − p_y and the margin term too."""
    method, batch = make()
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_with_two_classes_the_margin_term_is_cross_entropy_again() -> None:
    """1 − p_wrong = p_y: BCE = 2·CE, up to the guard 1e-4."""
    method, batch = make(classes=2)
    logits = method.model(batch.x_adv)
    ce = torch.tensor(reference.ce(logits, batch.y), dtype=torch.float64)
    torch.testing.assert_close(best_wrong(logits, batch.y), ce, rtol=0, atol=1e-3)
    exact = -torch.log(torch.exp(-ce) + 1e-4)
    torch.testing.assert_close(best_wrong(logits, batch.y), exact, rtol=0, atol=1e-12)


def test_sure_and_right_images_carry_no_kl() -> None:
    method, batch = make()
    with torch.no_grad():
        method.model.head.weight.zero_()
        method.model.head.bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    always = batch.with_adv()
    sure = Batch(always.x, torch.zeros_like(batch.y), always.index, x_adv=always.x_adv)
    assert method.loss(sure).terms["kl"] < 1e-12


def test_a_network_that_is_sure_and_wrong_gives_finite_gradients() -> None:
    """p_wrong rounds to 1 in float32: the guard 1.0001 keeps the logarithm finite."""
    logits = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    value = best_wrong(logits, torch.tensor([0]))
    value.sum().backward()
    assert value.item() == pytest.approx(-math.log(1e-4), rel=1e-2)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_images_are_legal_and_found_by_cross_entropy() -> None:
    method, batch = make()
    assert (batch.x_adv - batch.x).abs().max() <= 0.1 + 1e-12 and batch.x_adv.min() >= 0 and batch.x_adv.max() <= 1
    before = reference.mean(reference.ce(method.model(batch.x), batch.y))
    assert reference.mean(reference.ce(method.model(batch.x_adv), batch.y)) > before


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, batch = make()
    before = worlds.snapshot(method)
    assert torch.equal(method.perturb(batch).x_adv, batch.x_adv)
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method))
