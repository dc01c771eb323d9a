"""SCORE: squared distances of probabilities, their clips, their labels, and the attack on the same distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective
from atbench.data import Batch, CutMix, TrainData
from atbench.errors import ConfigError
from atbench.methods.score import Score, squared_distance
from tests.support import reference, worlds

Change = dict[str, Any]


def make(attack: Change | None = None, smoothing: float = 0.0, **options: Any) -> tuple[Score, Batch]:
    given, method = worlds.data(), Score(worlds.cnn(), worlds.attack(**(attack or {})), **options)
    method.risk.label_smoothing = smoothing
    worlds.start(method, given)
    return method, given.batch(0, 0)


def probabilities(logits: Tensor) -> list[list[float]]:
    return [[math.exp(v) for v in reference.log_softmax(row)] for row in logits.tolist()]


def square(p: list[float], q: list[float]) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True))


def smoothed(label: int, on_label: float, classes: int = 3) -> list[float]:
    return [on_label if k == label else (1 - on_label) / (classes - 1) for k in range(classes)]


def slow(method: Score, batch: Batch, on_label: float = 1.0) -> float:
    """The loss, example by example."""
    clean, adversarial = (probabilities(method.model(x)) for x in (batch.x, batch.x_adv))
    total = []
    for p, q, label in zip(clean, adversarial, batch.y.tolist(), strict=True):
        target = smoothed(label, on_label)
        if method.form == "pgd_at":
            each = square(q, target)
        else:
            each = square(p, target) + method.beta * max(0.0, square(q, p) - method.clip)
        total.append(max(0.0, each - method.total_clip))
    return reference.mean(total)


FORMS: list[Change] = [
    {},
    {"beta": 0.0},
    {"beta": 6.0, "clip": 0.002},
    {"beta": 6.0, "total_clip": 0.65},
    {"form": "pgd_at"},
    {"form": "pgd_at", "total_clip": 0.65},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_loss_is_the_formula(options: Change) -> None:
    method, batch = make(**options)
    batch = method.perturb(batch)
    assert method.loss(batch).total.item() == pytest.approx(slow(method, batch), abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6), "both p are differentiable"


@pytest.mark.parametrize("form", ["trades", "pgd_at"])
def test_smoothing_is_torchs_and_the_authors_after_conversion(form: str) -> None:
    """1 − s on the label and s/(K − 1) elsewhere is torch's smoothing of s·K/(K − 1)."""
    theirs = 0.2
    method, batch = make(smoothing=theirs * 3 / 2, form=form)
    batch = method.perturb(batch)
    assert method.loss(batch).total.item() == pytest.approx(slow(method, batch, 1 - theirs), abs=1e-12)
    soft = replace(batch, y=torch.tensor([smoothed(y, 1 - theirs) for y in batch.y.tolist()], dtype=torch.float64))
    method.risk.label_smoothing = 0.0
    assert method.loss(soft).total.item() == pytest.approx(slow(method, batch, 1 - theirs), abs=1e-12)


def test_the_target_of_a_mixed_image_is_its_mixed_label() -> None:
    given, method = worlds.data(mix=CutMix(1.0)), Score(worlds.cnn(), worlds.attack(), form="pgd_at")
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    assert batch.y.ndim == 2 and (batch.y.amax(dim=1) < 1).any()
    rows = [square(q, t) for q, t in zip(probabilities(method.model(batch.x_adv)), batch.y.tolist(), strict=True)]
    assert method.loss(batch).total.item() == pytest.approx(reference.mean(rows), abs=1e-12)


def test_beta_zero_is_brier_score_training() -> None:
    """What the attack finds does not matter then."""

    class Brier(Score):
        def loss(self, batch: Batch) -> Any:
            loss = super().loss(batch)
            p = self.model(batch.x).softmax(dim=1)
            onehot = torch.eye(3, dtype=torch.float64)[batch.y]
            return loss._replace(total=(p - onehot).square().sum(dim=1).mean())

    given, trained = worlds.data(), []
    for kind in (Score, Brier):
        method = kind(worlds.cnn(), worlds.attack(), beta=0.0)
        worlds.steps(method, given, 8)
        trained.append(worlds.snapshot(method))
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=1e-13)


def test_no_squared_distance_to_a_label_exceeds_two() -> None:
    """So that C ≥ 2 leaves nothing of PGD-AT, whatever the network says, and C just below 2 does."""
    method, batch = make(form="pgd_at", total_clip=2.0)
    with torch.no_grad():
        method.model.head.weight.zero_()
        method.model.head.bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    batch = method.perturb(batch)
    assert method.loss(batch).total.item() == 0
    method.total_clip = 1.9
    assert method.loss(batch).total.item() > 0


@pytest.mark.parametrize(("key", "term"), [("total_clip", "each"), ("clip", "drift")])
def test_examples_below_the_clip_have_no_gradient(key: str, term: str) -> None:
    method, batch = make(beta=6.0)
    batch = method.perturb(batch)
    clean, adversarial = (method.model(x).softmax(dim=1) for x in (batch.x, batch.x_adv))
    drift = (clean - adversarial).square().sum(dim=1)
    onehot = torch.eye(3, dtype=torch.float64)[batch.y]
    value = drift if term == "drift" else (clean - onehot).square().sum(dim=1) + 6 * drift
    bound = float(value.detach().median())
    setattr(method, key, bound)
    below = value < bound
    assert 0 < below.sum() < len(batch)

    def slope(rows: Tensor) -> float:
        part = replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows], x_adv=batch.x_adv[rows])
        weight = next(method.model.parameters())
        total, at_zero = method.loss(part).total, Score(method.model, method.attack, beta=0.0).loss(part).total
        (grad,) = torch.autograd.grad(total if term == "each" else total - at_zero, weight)
        return float(grad.abs().max())

    assert slope(below) < 1e-15 < slope(value > bound)


def slow_search(distance: Callable[[Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
    """Three sign steps of 0.04 in the ball of 0.1 around one image."""
    x_adv = start
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(distance(x_adv), x_adv)
        x_adv = torch.max(torch.min(x_adv.detach() + 0.04 * grad.sign(), x + 0.1), x - 0.1).clip(0, 1)
    return x_adv


@pytest.mark.parametrize("form", ["trades", "pgd_at"])
def test_the_attack_raises_its_own_distance(form: str) -> None:
    method, batch = make(smoothing=0.3, form=form)  # which the attack must not see
    found = method.perturb(batch).x_adv
    start = method.attack.begin(batch.x, 0.1, method.rng())
    for i in range(4):
        x = batch.x[i : i + 1]
        target = method.model(x).softmax(dim=1).detach()
        if form == "pgd_at":
            target = torch.eye(3, dtype=torch.float64)[batch.y[i : i + 1]]

        def distance(z: Tensor, target: Tensor = target) -> Tensor:
            return (method.model(z).softmax(dim=1) - target).square().sum()

        torch.testing.assert_close(found[i : i + 1], slow_search(distance, x, start[i : i + 1]), rtol=0, atol=1e-12)


def test_from_the_image_itself_the_attack_has_no_gradient() -> None:
    method, batch = make()
    x = batch.x.clone().requires_grad_()
    value, _ = Objective(method.model, squared_distance, method.probabilities(batch.x))(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert grad.abs().max() < 1e-15
    noise = method.attack.begin(batch.x, 0.1, method.rng()).requires_grad_()
    value, _ = Objective(method.model, squared_distance, method.probabilities(batch.x))(noise)
    assert torch.autograd.grad(value.sum(), noise)[0].abs().max() > 1e-6


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.form: mart"):
        make(form="mart")


@pytest.mark.parametrize("form", ["trades", "pgd_at"])
def test_contract(form: str) -> None:
    def of(given: TrainData) -> Score:
        return Score(worlds.cnn(), worlds.attack(), form=form, total_clip=0.1)

    method, batch = make(form=form)
    found = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, found.x_adv, 0.1)
    worlds.check_ranks(of)
    assert method.forward_cost(10) == (27 if form == "trades" else 23)
