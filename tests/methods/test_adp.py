"""ADP: the regulariser against plain numbers, its limits, and adversarial training on top."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, cross_entropy
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.adp import OFFSET, Adp, log_det
from atbench.models import Ensemble
from tests.support import reference, worlds

F64 = torch.float64


def make(members: int = 3, classes: int = 5, seed: int = 0, **options: Any) -> tuple[Adp, Batch]:
    networks = [worlds.cnn(classes=classes, seed=seed + k, activation="softplus") for k in range(members)]
    for k, network in enumerate(networks):  # apart from each other, as untrained members are not
        with torch.no_grad():
            network.head.weight.mul_(4 + k)
    method, given = Adp(Ensemble(networks), worlds.attack(), **options), worlds.data(worlds.source(classes=classes))
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def probabilities(row: list[float]) -> list[float]:
    return [math.exp(z) for z in reference.log_softmax(row)]


def determinant(matrix: list[list[float]]) -> float:
    """By Leibniz's formula."""
    size, total = len(matrix), []
    for order in permutations(range(size)):
        swaps = sum(order[a] > order[b] for a in range(size) for b in range(a + 1, size))
        total.append((-1) ** swaps * math.prod(matrix[i][order[i]] for i in range(size)))
    return math.fsum(total)


def slow(method: Adp, x: Tensor, y: Tensor) -> float:
    """The loss of the examples one by one, as their mean."""
    values = []
    logits = [member(x).tolist() for member in method.members]
    for i, label in enumerate(y.tolist()):
        p = [probabilities(z[i]) for z in logits]
        ce = math.fsum(-math.log(row[label]) for row in p)
        mean = [math.fsum(column) / len(p) for column in zip(*p, strict=True)]
        entropy = -math.fsum(q * math.log(q) for q in mean)
        rows = [[q for k, q in enumerate(row) if k != label] for row in p]
        unit = [[q / math.sqrt(math.fsum(e * e for e in row)) for q in row] for row in rows]
        gram = [
            [math.fsum(s * t for s, t in zip(a, b, strict=True)) + OFFSET * (m == n) for n, b in enumerate(unit)]
            for m, a in enumerate(unit)
        ]
        values.append(ce - method.entropy * entropy - method.diversity * math.log(determinant(gram)))
    return reference.mean(values)


@pytest.mark.parametrize("members", [2, 3, 4])
def test_loss_is_the_formula(members: int) -> None:
    method, batch = make(members, entropy=1.5, diversity=0.3)
    assert method.loss(method.perturb(batch)).total.item() == pytest.approx(slow(method, batch.x, batch.y), rel=1e-8)


def test_adversarial_training_adds_the_whole_loss_at_the_adversarial_images() -> None:
    method, batch = make(adversarial=True)
    batch = method.perturb(batch)
    assert not torch.equal(batch.x_adv, batch.x)
    expected = slow(method, batch.x, batch.y) + slow(method, batch.x_adv, batch.y)
    assert method.loss(batch).total.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("members", "value"), [(2, -13.1224), (3, -26.5324), (5, -53.6526)])
def test_members_that_are_alike_span_nothing(members: int, value: float) -> None:
    """ln M + (M − 1)·ln 10⁻⁶, in fp32 as well: the determinant is far below what fp32 resolves."""
    logits = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(0))
    for precision in (torch.float32, F64):
        found = log_det(logits.to(precision).expand(members, -1, -1), torch.arange(4))
        assert found.dtype == precision
        torch.testing.assert_close(found.double(), torch.full((4,), value, dtype=F64), rtol=0, atol=2e-4)


def test_disjoint_wrong_predictions_span_the_most() -> None:
    logits = torch.full((3, 1, 7), -800.0, dtype=F64)
    for member in range(3):
        logits[member, 0, 2 * member : 2 * member + 2] = torch.tensor([1.0, 2.0], dtype=F64)
    assert log_det(logits, torch.tensor([6])).item() == pytest.approx(3 * math.log(1 + OFFSET), abs=1e-12)


def test_a_sure_member_has_a_volume_and_a_gradient() -> None:
    """Where all wrong probabilities underflow, the ratio between them is still known."""
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sure = logits + 200 * torch.nn.functional.one_hot(torch.arange(3), 6)
    assert sure.softmax(dim=2)[0, 0, 1:].max() == 0
    found = log_det(sure, torch.arange(3))
    torch.testing.assert_close(found, log_det(logits, torch.arange(3)), rtol=0, atol=1e-3)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad.isfinite().all() and grad.abs().max() > 1e-3


def test_the_order_of_members_and_of_wrong_classes_does_not_count() -> None:
    logits = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
    y, whole = torch.tensor([0, 0]), torch.tensor([0, 3, 5, 1, 2, 4])
    torch.testing.assert_close(log_det(logits[[2, 0, 1]], y), log_det(logits, y), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det(logits[:, :, whole], y), log_det(logits, y), rtol=0, atol=1e-12)


def test_gradients_of_the_whole_loss() -> None:
    method, batch = make()
    batch = method.perturb(batch)
    exact, numeric = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(numeric, rel=1e-5)


def test_without_the_regulariser_members_learn_alone() -> None:
    method, batch = make(entropy=0.0, diversity=0.0)
    method.loss(method.perturb(batch)).total.backward()
    for member in method.members:
        risk = torch.nn.functional.cross_entropy(member(batch.x), batch.y)
        for parameter, grad in zip(
            member.parameters(), torch.autograd.grad(risk, list(member.parameters())), strict=True
        ):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-13)


def test_attacks_the_prediction_within_a_radius_of_the_batch() -> None:
    method, batch = make(adversarial=True, least_eps=0.2)
    with torch.no_grad():
        predicted = method.model(batch.x).argmax(dim=1)
    assert not torch.equal(predicted, batch.y)
    radii = []
    for method.clock.step in range(12):
        scale = method.rng("radius").scalar(0.2, 1.0)
        x_adv = method.perturb(batch).x_adv
        objective = Objective(method.model, cross_entropy, predicted)
        expected = method.run_attack(objective, batch.x, eps=scale * 0.1, step_size=scale * 0.04)
        assert torch.equal(x_adv, expected)
        radii.append((x_adv - batch.x).abs().max().item())
        assert radii[-1] == pytest.approx(scale * 0.1, rel=1e-6)
    assert 0.02 <= min(radii) < 0.05 and 0.07 < max(radii) <= 0.1


def test_nothing_is_attacked_unless_asked_for() -> None:
    method, batch = make()
    assert method.perturb(batch).x_adv is batch.x and method.fixed_steps() == {}


def test_two_processes_equal_one() -> None:
    """Both draw the same radius."""
    origin = worlds.source(classes=5)
    worlds.check_ranks(lambda given: make(adversarial=True)[0], origin=origin)


def test_more_members_than_wrong_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.members: 3 — there are 2 wrong classes"):
        make(members=3, classes=3)
