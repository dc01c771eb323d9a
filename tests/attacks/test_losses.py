"""Objectives against their formulas, written out a second time in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atbench.attacks import (
    Objective,
    confidence,
    cross_entropy,
    dlr,
    dlr_towards,
    kl_from,
    label_objective,
    margin,
    soft_margin,
)
from atbench.errors import ConfigError

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 3.5, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(z) for z in row))
    return [z - total for z in row]


def test_cross_entropy_of_classes_and_of_soft_labels() -> None:
    expected = [-log_softmax(row)[y] for row, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)]
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), torch.tensor(expected, dtype=torch.float64))
    soft = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]], dtype=torch.float64)
    rows = zip(LOGITS.tolist(), soft.tolist(), strict=True)
    expected = [-sum(p * q for p, q in zip(target, log_softmax(row), strict=True)) for row, target in rows]
    torch.testing.assert_close(cross_entropy(LOGITS, soft), torch.tensor(expected, dtype=torch.float64))


def test_margins() -> None:
    hard, soft = [], []
    for row, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        wrong = [z for k, z in enumerate(row) if k != y]
        hard.append(max(wrong) - row[y])
        soft.append(math.log(sum(math.exp(z) for z in wrong)) - row[y])
    torch.testing.assert_close(margin(LOGITS, LABELS), torch.tensor(hard, dtype=torch.float64))
    torch.testing.assert_close(soft_margin(LOGITS, LABELS), torch.tensor(soft, dtype=torch.float64))


def test_margins_say_who_is_right() -> None:
    logits = torch.randn((500, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(500) % 4
    assert torch.equal(margin(logits, y) > 0, logits.argmax(dim=1) != y)
    p = logits.softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    assert torch.equal(soft_margin(logits, y) < 0, p > 0.5)


def test_confidence_is_that_of_the_likeliest_wrong_class() -> None:
    p = LOGITS.softmax(dim=1)
    expected = [max(row[k] for k in range(3) if k != y) for row, y in zip(p.tolist(), LABELS.tolist(), strict=True)]
    torch.testing.assert_close(confidence(LOGITS, LABELS).exp(), torch.tensor(expected, dtype=torch.float64))


def test_confidence_climbs_where_its_probability_is_rounded_to_nothing() -> None:
    logits = torch.tensor([[300.0, 0.0, -1.0]], requires_grad=True)
    assert float(logits.detach().softmax(dim=1)[0, 1:].sum()) == 0
    (grad,) = torch.autograd.grad(confidence(logits, torch.tensor([0])).sum(), logits)
    assert grad.tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("value", [margin, soft_margin, confidence])
def test_margins_have_finite_gradients(value: object) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert callable(value)
    value(logits, LABELS).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_kl_is_zero_with_zero_gradient_at_its_own_distribution() -> None:
    logits = LOGITS.clone().requires_grad_()
    value = kl_from(logits, LOGITS.softmax(dim=1))
    value.sum().backward()
    assert value.abs().max() < 1e-15 and logits.grad is not None and logits.grad.abs().max() < 1e-15


def test_kl_is_not_symmetric_and_takes_p_first() -> None:
    """K = 2 by hand: KL(p ‖ q) = Σ p log(p / q)."""
    p, q = [0.9, 0.1], [0.4, 0.6]
    by_hand = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    given, logits = torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64).log()
    assert kl_from(logits, given).item() == pytest.approx(by_hand, abs=1e-15)
    assert kl_from(given.log(), logits.exp()).item() != pytest.approx(by_hand, abs=1e-3)


def test_kl_with_a_zero_probability_is_finite() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0]])
    assert kl_from(torch.zeros(1, 3), p).item() == pytest.approx(math.log(3))


def test_objective_picks_the_rows_it_is_asked_for() -> None:
    def network(x: Tensor) -> Tensor:
        return 2 * x

    whole, outputs = Objective(network, cross_entropy, LABELS)(LOGITS)
    rows = torch.tensor([2, 0])
    part, _ = Objective(network, cross_entropy, LABELS)(LOGITS[rows], rows, step=3)
    assert torch.equal(part, whole[rows]) and torch.equal(outputs, 2 * LOGITS)


def test_ratios_of_logits_refuse_too_few_classes() -> None:
    two, three = torch.zeros(2, 2), torch.zeros(2, 3)
    y = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="3 highest logits"):
        dlr(two, y)
    with pytest.raises(ConfigError, match="4 highest logits"):
        dlr_towards(three, y, 1 - y)
    with pytest.raises(ConfigError, match=r"eval\.objective: crossentropy"):
        label_objective("crossentropy", "eval.objective")
