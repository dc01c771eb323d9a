"""Feature scattering: the transport plan, the step along the gradient through it, the label, and the clean pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.methods.feature_scatter import FeatureScatter, cosine_cost, sinkhorn
from atbench.methods.standard import Standard
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "uniform", "clip_start": False}


def make(
    network: nn.Module | None = None, attack: dict[str, Any] | None = None, **options: Any
) -> tuple[FeatureScatter, Batch]:
    given = worlds.data()
    method = FeatureScatter(network or worlds.cnn(), worlds.attack(**{**ONE_STEP, **(attack or {})}), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow_cost(a: list[float], b: list[float]) -> float:
    return max(1 - sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)), 0.0)


def slow_plan(cost: list[list[float]], reg: float) -> list[list[float]]:
    n, m = range(len(cost)), range(len(cost[0]))
    u, v = [0.0 for _ in n], [0.0 for _ in m]
    for _ in range(100):
        before = list(u)
        for i in n:
            u[i] += reg * (
                math.log(1 / len(n)) - math.log(sum(math.exp((before[i] + v[j] - cost[i][j]) / reg) for j in m) + 1e-6)
            )
        old = list(v)
        for j in m:
            v[j] += reg * (
                math.log(1 / len(m)) - math.log(sum(math.exp((u[i] + old[j] - cost[i][j]) / reg) for i in n) + 1e-6)
            )
        if sum(abs(a - b) for a, b in zip(u, before, strict=True)) < 0.1:
            break
    return [[math.exp((u[i] + v[j] - cost[i][j]) / reg) for j in m] for i in n]


def pairs(rows: int = 7, classes: int = 4, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(rows, classes, generator=rng, dtype=torch.float64)
    return a, a + noise * torch.randn(rows, classes, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("reg", [0.01, 0.3])
def test_cost_and_plan_are_those_of_the_definition(reg: float) -> None:
    a, b = pairs()
    slow = [[slow_cost(p, q) for q in b.tolist()] for p in a.tolist()]
    cost = cosine_cost(a, b)
    torch.testing.assert_close(cost, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-14)
    plan = sinkhorn(cost, reg)
    torch.testing.assert_close(plan, torch.tensor(slow_plan(slow, reg), dtype=torch.float64), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((7,), 1 / 7, dtype=torch.float64), rtol=1e-3, atol=0)
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    torch.testing.assert_close(sinkhorn(cost[:, order], reg), plan[:, order], rtol=1e-10, atol=1e-14)


def test_one_image_has_its_own_cosine_and_equal_rows_share_alike() -> None:
    a, b = pairs(rows=1)
    cost = cosine_cost(a, b)
    assert (sinkhorn(cost, 0.01) * cost).sum().item() == pytest.approx(
        1 - torch.cosine_similarity(a, b).item(), rel=1e-5
    )
    plan = sinkhorn(torch.zeros(4, 4, dtype=torch.float64), 0.01)
    torch.testing.assert_close(plan, torch.full((4, 4), 1 / 16, dtype=torch.float64), rtol=1e-5, atol=0)


def slow_distance(a: Tensor, b: Tensor, reg: float) -> float:
    cost = [[slow_cost(p, q) for q in b.tolist()] for p in a.tolist()]
    plan = slow_plan(cost, reg)
    return math.fsum(t * c for row, costs in zip(plan, cost, strict=True) for t, c in zip(row, costs, strict=True))


def test_the_step_climbs_the_distance_of_the_batches_and_goes_through_the_plan() -> None:
    method, batch = make()
    start = batch.x + 0.1 * method.rng().uniform(batch.x)
    assert float(start.min()) < 0 or float(start.max()) > 1, "not clipped to the box"
    found = method.perturb(batch).x_adv
    clean, checked, h = method.model(batch.x).detach(), 0, 1e-5
    for i in range(12):
        pixel = (i, 0, i % 8, (3 * i) % 8)
        ends = []
        for side in (h, -h):
            moved = start.clone()
            moved[pixel] += side
            ends.append(slow_distance(clean, method.model(moved).detach(), 0.01))
        slope = (ends[0] - ends[1]) / (2 * h)
        if abs(slope) > 1e-7:
            x = batch.x[pixel]
            ahead = (start[pixel] + 0.1 * math.copysign(1, slope)).clip(x - 0.1, x + 0.1).clip(0, 1)
            assert found[pixel].item() == pytest.approx(ahead.item(), abs=1e-12)
            checked += 1
    assert checked >= 8


def test_the_objective_s_gradient_is_that_of_the_whole_distance() -> None:
    """With T a constant it would be another: the slope along a direction, against a central difference."""
    a, b = pairs()
    way = torch.randn(b.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = b.clone().requires_grad_()
    cost = cosine_cost(a, point)
    plan = sinkhorn(cost, 0.1)
    (grad,) = torch.autograd.grad((plan * cost).sum(), point, retain_graph=True)
    (held,) = torch.autograd.grad((plan.detach() * cost).sum(), point)
    ends = [slow_distance(a, b + side * way, 0.1) for side in (1e-6, -1e-6)]
    slope = (ends[0] - ends[1]) / 2e-6
    assert (grad * way).sum().item() == pytest.approx(slope, rel=1e-6)
    assert abs((held * way).sum().item() - slope) > 1e-3 * abs(slope)


@pytest.mark.parametrize("smoothing", [0.5, 0.2])
def test_loss_is_the_cross_entropy_with_the_smooth_label(smoothing: float) -> None:
    method, batch = make(smoothing=smoothing)
    found = method.perturb(batch)
    logits = method.model(found.x_adv)
    slow = [
        -sum((1 - smoothing if k == y else smoothing / 2) * log_p for k, log_p in enumerate(reference.log_softmax(z)))
        for z, y in zip(logits.tolist(), batch.y.tolist(), strict=True)
    ]
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(reference.mean(slow), abs=1e-12) and torch.equal(loss.logits, logits)


def test_labels_say_nothing_to_the_attack() -> None:
    method, batch = make()
    other = Batch(batch.x, (batch.y + 1) % 3, batch.index)
    assert torch.equal(method.perturb(batch).x_adv, method.perturb(other).x_adv)


def test_without_radius_and_smoothing_it_is_clean_training_to_the_bit() -> None:
    given = worlds.data()
    method = FeatureScatter(worlds.cnn(), worlds.attack(**{**ONE_STEP, "eps": 0.0, "step_size": 0.0}), smoothing=0.0)
    other = Standard(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 4) == worlds.steps(other, given, 4)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_every_tenth_batch_passes_clean_through_the_updated_network() -> None:
    network = worlds.cnn(norm="batch")
    method, batch = make(network, clean_pass_every=10)
    norm: Any = network.stages[1][0]  # type: ignore[index]
    seen = []
    for step in (0, 1, 9, 10, 11, 20):
        method.clock.step = step
        before = int(norm.num_batches_tracked)
        found = method.perturb(batch)
        method.loss(found)
        method.after_update(found)
        seen.append(int(norm.num_batches_tracked) - before)
    assert seen == [2, 1, 1, 2, 1, 2]
    with torch.no_grad():
        mean = network.stages[0](network.normalise(batch.x)).mean((0, 2, 3))
    before = norm.running_mean.clone()
    method.after_update(batch)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * mean, rtol=0, atol=1e-12)
    method.clean_pass_every = 0
    method.after_update(batch)
    assert int(norm.num_batches_tracked) == sum(seen) + 1 and method.forward_cost(1) == 6
    assert all(parameter.grad is None for parameter in method.parameters())


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
