"""L-BFGS in a box: scipy's beside ours, the closed form on a linear network, and the search for c."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from atbench.attacks import ball
from atbench.attacks.min_norm.base import NearestAdversarial
from atbench.attacks.min_norm.box_lbfgs import Curvature, minimise
from atbench.attacks.min_norm.lbfgs import LBFGS
from tests.support.targets import Aim, Linear, distance, draws, images
from tests.support.trained import balanced, distances

B, D = 6, 10


def problems(curved: float) -> tuple[Tensor, Tensor, Any]:
    """Convex problems ½·xᵀA_i x − b_iᵀx + curved·Σ x⁴, whose free minimum lies partly outside the box [0, 1]."""
    rng = torch.Generator().manual_seed(0)
    root = torch.randn((B, D, D), generator=rng, dtype=torch.float64)
    matrix = root @ root.mT / D + 0.05 * torch.eye(D, dtype=torch.float64)
    slope = torch.randn((B, D), generator=rng, dtype=torch.float64)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        ax = torch.einsum("bij,bj->bi", matrix, x)
        value = (x * ax / 2 - slope * x + curved * x**4).sum(dim=1)
        return value, ax - slope + 4 * curved * x**3

    return matrix, slope, evaluate


@pytest.mark.parametrize("curved", [0.0, 1.0])
def test_the_minimum_is_that_of_scipy(curved: float) -> None:
    _, _, evaluate = problems(curved)
    x = torch.full((B, D), 0.5, dtype=torch.float64)
    found = minimise(evaluate, x, *evaluate(x), 0.0, 1.0, steps=120, memory=10)
    on_bound = (found == 0) | (found == 1)
    assert on_bound.any() and not on_bound.all()
    for i in range(B):

        def one(z: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            rows = torch.from_numpy(z).expand(B, D)
            value, grad = evaluate(rows)
            return float(value[i]), grad[i].numpy()

        theirs = minimize(one, x[i].numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * D)
        assert evaluate(found)[0][i] <= theirs.fun + 1e-8
        torch.testing.assert_close(found[i], torch.from_numpy(theirs.x), rtol=0, atol=1e-3)


def test_direction_is_newtons_once_the_curvature_is_known() -> None:
    """With D pairs along conjugate directions the two-loop recursion is A⁻¹, in the free variables alone too."""
    matrix, slope, _ = problems(0.0)
    curvature = Curvature(slope, D)
    _, vectors = torch.linalg.eigh(matrix)
    for k in range(D):
        step = vectors[:, :, k]
        curvature.add(step, torch.einsum("bij,bj->bi", matrix, step), torch.ones(B, dtype=torch.bool))
    found = curvature.direction(slope, torch.ones_like(slope, dtype=torch.bool))
    torch.testing.assert_close(found, -torch.linalg.solve(matrix, slope), rtol=1e-9, atol=1e-9)
    free = torch.arange(D).expand(B, D) % 2 == 0
    held = curvature.direction(slope, free)
    assert not held[~free].any() and ((held * slope).sum(dim=1) < 0).all()


def test_pairs_without_curvature_or_that_were_rejected_are_not_kept() -> None:
    curvature = Curvature(torch.zeros(2, 3), memory=2)
    step, grad = torch.ones(2, 3), torch.tensor([[3.0, 0.0, 4.0]] * 2)
    curvature.add(step, -step, torch.tensor([True, True]))
    curvature.add(step, 2 * step, torch.tensor([False, True]))
    steepest, scaled = curvature.direction(grad, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(steepest, -grad[0] / 5)
    assert not torch.allclose(scaled, steepest)


def test_the_distance_on_a_linear_network_of_two_classes() -> None:
    """margin / ‖w‖ along w: r approaches it as c nears its largest value."""
    network = balanced(classes=2)
    x, y = images(network)
    far = distance(network, x, y, "l2")
    gaps = []
    for searches in (3, 12):
        x_adv = LBFGS("l2", 1.0, searches=searches)(Aim(network), x, y, draws(len(x)))
        found = distances(network, x, x_adv, y, 2)
        assert found.isfinite().all() and (found >= far * (1 - 1e-9)).all()
        gaps.append((found / far - 1).median().item())
    assert gaps[1] < 0.02 and gaps[1] < gaps[0]
    w = (network.head.weight[1] - network.head.weight[0]).detach()
    r = (x_adv - x).flatten(1)
    assert (torch.cosine_similarity(r, w[None], dim=1).abs() > 0.999).all()


def test_the_minimiser_of_one_c() -> None:
    """c·‖r‖ + CE along w: σ(m − t‖w‖) = c/‖w‖ at a minimum inside the box, for a c below ‖∇CE‖ at x."""
    network = balanced(classes=2)
    x, y = images(network, n=8)
    w = (network.head.weight[1] - network.head.weight[0]).detach()
    seen: list[Tensor] = []

    class Once(Aim):
        def logits(self, x: Tensor) -> Tensor:
            if not x.requires_grad:
                seen.append(x.flatten(1))
            return super().logits(x)

    LBFGS("l2", 1.0, searches=1, steps=60)(Once(network), x, y, draws(len(x)))
    with torch.no_grad():
        before, after = (network(z.view_as(x)).softmax(dim=1) for z in (x.flatten(1), seen[-1]))
    wrong, rows = 1 - y, torch.arange(len(y))
    c = (1 - before[rows, wrong]) * w.norm() / 2  # half of the gradient's norm at x
    inside = (seen[-1] > 0).all(dim=1) & (seen[-1] < 1).all(dim=1)
    assert inside.sum() > 4
    torch.testing.assert_close(((1 - after[rows, wrong]) * w.norm())[inside], c[inside], rtol=1e-5, atol=1e-6)


def test_c_grows_while_it_suffices_and_is_bisected_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example's minimiser is l's for every c up to 1.5 times its first one, the second one's for none."""
    tried: list[list[float]] = []
    network = Linear(classes=2)
    x, y = images(network, n=2)

    start: list[Tensor] = []

    def counted(evaluate: Any, point: Tensor, value: Tensor, grad: Tensor, *_: Any) -> Tensor:
        # c from the objective itself: its value a step away, less the cross-entropy there
        far = point + 1
        logits = network(far.view_as(x))
        ce = torch.nn.functional.cross_entropy(logits, 1 - y, reduction="none")
        c = (evaluate(far)[0] - ce) / 6  # ‖1‖₂ of 36 pixels
        start.append(c)
        tried.append((c / start[0]).tolist())
        reach = torch.tensor([1.5, 0.0])
        w = (network.head.weight[1] - network.head.weight[0]).detach()
        towards = torch.where(y[:, None] == 0, w, -w)
        return point + torch.where(c / start[0] <= reach, 100.0, 0.0)[:, None] * towards

    monkeypatch.setattr("atbench.attacks.min_norm.lbfgs.minimise", counted)
    LBFGS("l2", 1.0, searches=5)(Aim(network), x, y, draws(len(x)))
    first, second = zip(*tried, strict=True)
    assert first == pytest.approx([1, 2, 2**0.5, 2**0.75, 2**0.625])
    assert second == pytest.approx([2.0**-k for k in range(5)])


def test_features_have_no_box() -> None:
    network = Linear(classes=2)
    x, y = images(network)
    nearest = NearestAdversarial(ball("l2"), 100 + x)
    y = network(100 + x).argmax(dim=1).detach()
    LBFGS("l2", 1.0).search(network, nearest, y, -torch.inf, torch.inf)
    assert nearest.distance.isfinite().all() and nearest.image.min() > 1
