"""The nearest point of a hyperplane within the box, against linear programs and a root finder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog
from torch import Tensor

from atbench.attacks.min_norm.fab_projection import to_hyperplane

INF = float("inf")
NORMS = (1.0, 2.0, INF)
N = 7


def cases(count: int = 60, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Points with pixels on the edges of the box, slopes with zeros and ties, needs in and out of reach."""
    rng = torch.Generator().manual_seed(0)
    t = torch.rand((count, N), generator=rng, dtype=dtype).mul(1.6).sub(0.3).clamp(0, 1)
    w = torch.randn((count, N), generator=rng, dtype=dtype)
    w[::3, 2] = 0
    w[1::3, 4] = w[1::3, 1]
    share = torch.linspace(-1.3, 1.3, count, dtype=dtype)
    return t, w, share * reach(t, w, share)


def reach(t: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The greatest |⟨w, d⟩| within the box, in the direction of c."""
    slope = torch.where(c[:, None] < 0, -w, w)
    return torch.where(slope > 0, slope * (1 - t), -slope * t).sum(dim=1)


def reference(t: np.ndarray, w: np.ndarray, c: float, p: float) -> float:
    """The least norm, by linear programming (p = 1, ∞) or by the root of the Lagrangian's derivative (p = 2)."""
    if p == 2:
        step = lambda level: np.clip(level * w, -t, 1 - t)  # noqa: E731
        bound = 1e4
        level = brentq(lambda level: float(w @ step(level)) - c, -bound, bound, xtol=1e-15)
        return float(np.linalg.norm(step(level)))
    if p == 1:  # d = u − v with u, v ≥ 0
        bounds = [(0, room) for room in 1 - t] + [(0, room) for room in t]
        return float(linprog(np.ones(2 * N), A_eq=[np.concatenate([w, -w])], b_eq=[c], bounds=bounds).fun)
    above = np.hstack([np.eye(N), -np.ones((N, 1))])
    below = np.hstack([-np.eye(N), -np.ones((N, 1))])
    bounds = [*zip(-t, 1 - t, strict=True), (0, None)]
    cost, slope = np.append(np.zeros(N), 1), [np.append(w, 0)]
    return float(linprog(cost, np.vstack([above, below]), np.zeros(2 * N), slope, [c], bounds).fun)


@pytest.mark.parametrize("p", NORMS)
def test_no_shorter_way_exists(p: float) -> None:
    t, w, c = cases()
    d = to_hyperplane(t, w, c, p)
    for row in (c.abs() < reach(t, w, c)).nonzero().flatten().tolist():
        least = reference(t[row].numpy(), w[row].numpy(), float(c[row]), p)
        assert abs(float(d[row].norm(p=p)) - least) < 1e-7


@pytest.mark.parametrize("p", NORMS)
def test_the_hyperplane_is_met_or_the_corner_towards_it(p: float) -> None:
    t, w, c = cases()
    d = to_hyperplane(t, w, c, p)
    assert (t + d).min() >= -1e-15 and (t + d).max() <= 1 + 1e-15
    far = c.abs() > reach(t, w, c)
    assert 5 < int(far.sum()) < 55
    torch.testing.assert_close((w * d).sum(dim=1)[~far], c[~far], rtol=0, atol=1e-12)
    corner = torch.where(torch.where(c[:, None] < 0, -w, w) > 0, 1.0, 0.0)
    corner = torch.where(w == 0, t, corner)
    torch.testing.assert_close((t + d)[far], corner[far], rtol=0, atol=1e-15)


@pytest.mark.parametrize("p", NORMS)
def test_pixels_that_do_not_count_stay(p: float) -> None:
    t, w, c = cases()
    d = to_hyperplane(t, w, c, p)
    assert (d[w == 0] == 0).all()
    assert (to_hyperplane(t, w, torch.zeros_like(c), p) == 0).all()
    assert (to_hyperplane(t, torch.zeros_like(w), c, p) == 0).all()


@pytest.mark.parametrize("p", NORMS)
def test_a_row_does_not_depend_on_the_others(p: float) -> None:
    t, w, c = cases()
    whole = to_hyperplane(t, w, c, p)
    alone = [to_hyperplane(t[row : row + 1], w[row : row + 1], c[row : row + 1], p) for row in range(len(c))]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", NORMS)
def test_single_precision_and_many_pixels(p: float) -> None:
    """As many pixels as a CIFAR image has: the error is of the order of rounding, not of the number of pixels."""
    rng = torch.Generator().manual_seed(1)
    t, w = torch.rand((8, 3072), generator=rng), torch.randn((8, 3072), generator=rng)
    c = torch.tensor([0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99])
    c = c * reach(t, w, c)
    d = to_hyperplane(t, w, c, p)
    exact = to_hyperplane(t.double(), w.double(), c.double(), p)
    torch.testing.assert_close(d.double().norm(p=p, dim=1), exact.norm(p=p, dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close((w.double() * d).sum(dim=1), c.double(), rtol=1e-5, atol=0)


def test_a_slope_that_is_no_number_ends() -> None:
    t, w, c = cases(4)
    w[0, 0] = torch.nan
    for p in NORMS:
        torch.testing.assert_close(to_hyperplane(t, w, c, p)[1:], to_hyperplane(t[1:], w[1:], c[1:], p))
