"""ATDA: the three distances of two domains of logits, and the centres of the classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.methods.atda import Atda
from atbench.methods.fgsm_at import FgsmAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero", "bn": "train"}


def make(network: nn.Module | None = None, given: TrainData | None = None, **options: Any) -> tuple[Atda, Batch]:
    given = given or worlds.data()
    method = Atda(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def centred(method: Atda) -> Atda:
    rng = torch.Generator().manual_seed(1)
    method.centres.copy_(torch.randn((3, 3), generator=rng, dtype=torch.float64))
    return method


def slow_terms(method: Atda, batch: Batch) -> dict[str, float]:
    """MMD, CORAL and the margin, entry by entry."""
    z, w = (method.model(x).tolist() for x in (batch.x, batch.x_adv))
    n, k, divisor = len(z), len(z[0]), (len(z) - 1 if method.covariance else 1)
    means = [[sum(row[j] for row in rows) / n for j in range(k)] for rows in (z, w)]
    mmd = sum(abs(a - b) for a, b in zip(*means, strict=True)) / k

    def entry(rows: list[list[float]], mean: list[float], i: int, j: int) -> float:
        return sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / divisor

    coral = sum(abs(entry(z, means[0], i, j) - entry(w, means[1], i, j)) for i in range(k) for j in range(k)) / k**2
    margin = 0.0
    for row, y in zip(z + w, batch.y.tolist() * 2, strict=True):
        far = [sum(abs(a - c) for a, c in zip(row, centre, strict=True)) for centre in method.centres.tolist()]
        margin += sum(math.log1p(math.exp(far[y] - far[j])) for j in range(k) if j != y)
    return {"mmd": mmd, "coral": coral, "margin": margin / (2 * n * (k - 1))}


@pytest.mark.parametrize("covariance", [False, True])
def test_loss_is_the_formula(covariance: bool) -> None:
    method, batch = make(weight=0.7, covariance=covariance)
    batch = centred(method).perturb(batch)
    expected = slow_terms(method, batch)
    assert min(expected.values()) > 1e-5
    loss = method.loss(batch)
    assert {name: loss.terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-9)
    ce = [reference.mean(reference.ce(method.model(x), batch.y)) for x in (batch.x, batch.x_adv)]
    assert loss.total.item() == pytest.approx(sum(ce) + 0.7 * sum(expected.values()), rel=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_attack_climbs_the_predicted_class() -> None:
    method, batch = make()
    x = batch.x.clone().requires_grad_()
    logits = method.model(x)
    predicted = logits.argmax(dim=1)
    assert (predicted != batch.y).any()
    grad = torch.autograd.grad(F.cross_entropy(logits, predicted), x)[0]
    torch.testing.assert_close(
        method.perturb(batch).x_adv, (batch.x + 0.1 * grad.sign()).clamp(0, 1), rtol=0, atol=1e-14
    )


def test_centres_move_by_the_logits_of_their_class() -> None:
    """From any start, c − α·Σ(c − z)/(1 + n), after the update, and not in the loss."""
    method, batch = make()
    batch = centred(method).perturb(batch)
    before = method.centres.clone()
    method.loss(batch)
    assert torch.equal(method.centres, before)
    rows = torch.cat([method.model(batch.x), method.model(batch.x_adv)]).detach()
    method.after_update(batch)
    for k in range(3):
        own = rows[(batch.y == k).repeat(2)]
        expected = before[k] - 0.1 * sum(before[k] - z for z in own) / (1 + len(own))
        torch.testing.assert_close(method.centres[k], expected, rtol=0, atol=1e-12)
    assert "centres" in method.state_dict()


def test_two_equal_domains_have_no_distance() -> None:
    """And a shift of one of them moves the mean alone."""
    method, batch = make()
    loss = method.loss(batch.with_adv(batch.x))
    assert loss.terms["mmd"] == 0 and loss.terms["coral"] == 0
    assert loss.terms["margin"].item() == pytest.approx(math.log(2)), "all centres are at 0"

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = worlds.cnn(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x) + torch.tensor([1.0, -2.0, 0.5]) * (self.calls == 2)

    method, batch = make(Shifted())
    loss = method.loss(batch.with_adv(batch.x))
    assert loss.terms["mmd"].item() == pytest.approx(3.5 / 3) and loss.terms["coral"] < 1e-12


def test_without_its_weight_it_is_twice_half_clean_half_fgsm() -> None:
    method, batch = make(weight=0.0)
    other = FgsmAt(worlds.cnn(), worlds.attack(**ONE_STEP), 0.5, "prediction")
    worlds.start(other, worlds.data())
    a, b = method.loss(method.perturb(batch)).total, other.loss(other.perturb(batch)).total
    torch.testing.assert_close(a, 2 * b, rtol=1e-14, atol=0)


def test_contract() -> None:
    method, batch = make()
    worlds.check_pure(method, batch)

    def fresh() -> Atda:
        return make()[0]

    worlds.check_resume(fresh, worlds.data())
