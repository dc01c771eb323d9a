"""LWA: perturbations of exactly the radius, along the loss, to the nearest boundary, or of a representation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.bench.steps import operations as cost
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.strong_adversary import StrongAdversary, nearest_boundary
from atbench.models import Ensemble
from atbench.training.cost import Count
from tests.support import reference, worlds

DIRECTIONS = ("loss", "alpha", "representation")


def make(
    given: TrainData, direction: str = "loss", network: nn.Module | None = None, norm: str = "l2", **options: Any
) -> StrongAdversary:
    search = worlds.attack(norm=norm, eps=0.2, step_size=0.2, steps=1, start="zero", sparsity=0)
    method = StrongAdversary(worlds.cnn() if network is None else network, search, direction, **options)
    method.setup(given)
    worlds.start(method, given)
    return method


def perturbed(direction: str, **options: Any) -> tuple[StrongAdversary, Batch]:
    given = worlds.data(worlds.source(inset=0.25))
    method = make(given, direction, **options)
    return method, method.perturb(given.batch(0, 0))


def slow_boundary(network: nn.Module, x: Tensor, y: int, norm: str) -> Tensor:
    """The direction of one image: the probabilities' own derivatives, class by class."""
    jacobian = torch.autograd.functional.jacobian(lambda image: network(image).softmax(dim=1)[0], x)
    p = network(x).softmax(dim=1)[0].tolist()
    best, way = math.inf, x
    for j in range(len(p)):
        if j == y:
            continue
        difference = (jacobian[j] - jacobian[y]).flatten()
        length = {"l2": difference.square().sum().sqrt(), "linf": difference.abs().sum(), "l1": difference.abs().max()}
        distance = abs(p[y] - p[j]) / float(length[norm])
        if distance < best:
            best, way = distance, difference
    if norm == "linf":
        r = way.sign()
    elif norm == "l2":
        r = way / way.square().sum().sqrt()
    else:
        r = torch.zeros_like(way)
        r[way.abs().argmax()] = way[way.abs().argmax()].sign()
    return r.view_as(x)


@pytest.mark.parametrize("direction", ["loss", "alpha"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_perturbations_have_exactly_the_radius(direction: str, norm: str) -> None:
    method, batch = perturbed(direction, norm=norm)
    lengths = method.attack.ball.norm(batch.x_adv - batch.x)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_alpha_goes_to_the_nearest_boundary_of_the_linearised_probabilities(norm: str) -> None:
    method, batch = perturbed("alpha", norm=norm)
    right = method.model(batch.x).argmax(dim=1) == batch.y
    assert 0 < int(right.sum()) < len(right)
    for i in range(len(batch)):
        x = batch.x[i : i + 1]
        r = slow_boundary(method.model, x, int(batch.y[i]), norm)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x + 0.2 * r, rtol=0, atol=1e-9)


def test_the_nearest_boundary_depends_on_the_norm() -> None:
    """Made-up logits and slopes, the Jacobian of softmax written out: distances are in the dual norm."""
    rng = torch.Generator().manual_seed(0)
    gaps = torch.randn(40, 4, generator=rng, dtype=torch.float64)
    slopes = torch.randn(40, 4, 24, generator=rng, dtype=torch.float64)
    slopes[:, 2:] = 0.1 * slopes[:, 2:]
    slopes[:, 2:, 0] = 5.0  # a spike is long in the largest norm and short in the sum
    p = torch.cat([torch.zeros(40, 1, dtype=torch.float64), gaps], dim=1).softmax(dim=1)
    logits = torch.cat([torch.zeros(40, 1, 24, dtype=torch.float64), slopes], dim=1)  # the label's is 0 everywhere
    h = (p.diag_embed() - p[:, :, None] * p[:, None]) @ logits
    chosen = []
    for dual in (1.0, 2.0, torch.inf):
        ways = nearest_boundary(gaps, slopes, dual)
        for i in range(40):
            boundaries = [
                (abs(float(p[i, 0] - p[i, j])) / float((h[i, j] - h[i, 0]).norm(p=dual)), j) for j in range(1, 5)
            ]
            _, j = min(boundaries)
            torch.testing.assert_close(ways[i] * (1 - p[i, 0]), h[i, j] - h[i, 0], rtol=0, atol=1e-12)
            chosen.append(j)
    assert len({tuple(chosen[start : start + 40]) for start in (0, 40, 80)}) == 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_with_two_classes_all_directions_to_the_boundary_are_that_of_the_loss(norm: str) -> None:
    """Right and wrong images alike; a wrong one is not sent back."""
    given = worlds.data(worlds.source(classes=2))
    batch = given.batch(0, 0)
    batch = replace(batch, y=torch.where(torch.arange(12) < 6, batch.y, 1 - batch.y))
    found = [make(given, way, worlds.linear(2), norm).perturb(batch).x_adv for way in ("loss", "alpha")]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    right = worlds.linear(2)(batch.x).argmax(dim=1) == batch.y
    assert 0 < int(right.sum()) < len(right)


def test_alpha_survives_probabilities_of_one() -> None:
    """In float32, 200 logits above the others: the derivatives of the probabilities are 0, their directions are not."""
    slopes = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    way = nearest_boundary(torch.tensor([[-200.0, -230.0]]), slopes, 2.0)
    assert way.isfinite().all() and way.norm() > 1
    torch.testing.assert_close(way / way.norm(), torch.tensor([[0.6, 0.8]]))
    wrong = nearest_boundary(torch.tensor([[200.0, 190.0]]), slopes, 2.0)
    assert bool(wrong.isfinite().all())


def test_a_flat_loss_moves_nothing() -> None:
    given = worlds.data()
    network = worlds.cnn()
    with torch.no_grad():
        network.head.weight.zero_()
    for direction in DIRECTIONS:
        batch = make(given, direction, network).perturb(given.batch(0, 0))
        assert torch.equal(batch.x_adv, batch.x)
        assert direction != "representation" or not batch.aux["r"].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_along_the_loss_it_is_one_step_of_pgd_at_to_the_bit(norm: str) -> None:
    given = worlds.data()
    method = make(given, norm=norm)
    other = PgdAt(worlds.cnn(), worlds.attack(norm=norm, eps=0.2, step_size=0.2, steps=1, start="zero"))
    assert worlds.steps(method, given, 6) == worlds.steps(other, given, 6)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_a_representation_moves_by_its_share_along_the_loss(layer: int) -> None:
    method, batch = perturbed("representation", layer=layer, share=0.3)
    assert torch.equal(batch.x_adv, batch.x)
    network, r, total = method.network, batch.aux["r"], []
    last = layer % network.depth
    for i in range(len(batch)):
        h = network.features(batch.x[i : i + 1], last).detach().requires_grad_()
        logits = network.classify(network.continue_from(h, last + 1))
        (grad,) = torch.autograd.grad(reference_ce(logits, batch.y[i : i + 1]), h)
        expected = 0.3 * h.detach().norm() * grad / grad.norm()
        torch.testing.assert_close(r[i : i + 1], expected, rtol=0, atol=1e-12)
        moved = network.classify(network.continue_from(h + expected, last + 1))
        total.append(reference_ce(moved, batch.y[i : i + 1]).item())
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean(total), abs=1e-12)
    assert loss.total > reference.mean(reference.ce(network(batch.x), batch.y))


def reference_ce(logits: Tensor, y: Tensor) -> Tensor:
    """−log p_y of one example."""
    return -(logits[0, y[0]] - logits[0].exp().sum().log())


def test_the_stages_before_the_representation_learn_and_the_perturbation_is_a_constant() -> None:
    method, batch = perturbed("representation", layer=2)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)
    (grad,) = torch.autograd.grad(method.loss(batch).total, method.network.stages[0].weight)
    assert grad.abs().max() > 1e-6 and not batch.aux["r"].requires_grad


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_label_smoothing_is_of_the_update_and_not_of_the_attack(direction: str) -> None:
    method, batch = perturbed(direction)
    sharp = method.loss(batch).total
    method.risk.label_smoothing = 0.3
    again = method.perturb(batch)
    assert torch.equal(again.x_adv, batch.x_adv) and method.loss(again).total != sharp
    assert direction != "representation" or torch.equal(again.aux["r"], batch.aux["r"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_contract(direction: str) -> None:
    given = worlds.data()
    method = make(given, direction)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.2)
    worlds.check_ranks(lambda own: make(own, direction))


def test_alpha_costs_a_backward_pass_a_wrong_class() -> None:
    given = worlds.data()
    method = make(given, "alpha", worlds.cnn(width=16))
    batch = given.batch(0, 0)
    with Count() as count, torch.no_grad():
        method.model(batch.x)
    assert method.forward_cost(1) == 6.0  # 1 + 2 + 3
    assert 0.9 * 6 <= cost(method, batch) / count.total <= 1.02 * 6


def test_settings_that_cannot_be_run_are_refused() -> None:
    given = worlds.data()
    with pytest.raises(ConfigError, match=r"method\.direction"):
        make(given, "uphill")
    with pytest.raises(ConfigError, match=r"method\.layer: 5 .* -5 to 4"):
        make(given, "representation", layer=5)
    with pytest.raises(ConfigError, match=r"method\.layer: .* stage"):
        make(given, "representation", Ensemble([worlds.cnn(), worlds.cnn(seed=1)]))
