"""Projections on the L1 ball, alone and cut by the box, against a slow bisection and against the KKT conditions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from atbench.attacks.norms.l1_projection import project_l1, project_l1_box

F64 = torch.float64


def problem(rows: int, d: int, seed: int, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand((rows, d), generator=rng, dtype=F64)
    x[::3, : d // 3] = x[::3, : d // 3].round()  # some pixels on the edge of the box, with no room on one side
    return x, x + spread * torch.randn((rows, d), generator=rng, dtype=F64)


def slow_box(x: list[float], z: list[float], eps: float) -> list[float]:
    """Row by row in plain Python: 200 bisections on λ of Σ clip(|z − x| − λ, 0, room) = ε."""

    def at(lam: float) -> list[float]:
        moved = []
        for a, b in zip(x, z, strict=True):
            room = 1 - a if b > a else a
            moved.append(min(max(abs(b - a) - lam, 0.0), room) * (1 if b > a else -1))
        return moved

    low, high = 0.0, max(abs(b - a) for a, b in zip(x, z, strict=True))
    if sum(map(abs, at(0.0))) > eps:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(map(abs, at(middle))) > eps else (low, middle)
    return [a + m for a, m in zip(x, at(high if sum(map(abs, at(0.0))) > eps else 0.0), strict=True)]


@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4, 1.3, 40.0])
def test_box_projection_equals_the_slow_one(d: int, eps: float) -> None:
    x, z = problem(40, d, seed=d)
    fast = project_l1_box(x, z, torch.full((40,), eps, dtype=F64))
    slow = torch.tensor([slow_box(a, b, eps) for a, b in zip(x.tolist(), z.tolist(), strict=True)], dtype=F64)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [3, 30])
def test_box_projection_meets_the_kkt_conditions(d: int) -> None:
    """v is the projection iff ⟨z − v, w − v⟩ ≤ 0 for all legal w."""
    x, z = problem(30, d, seed=7)
    eps = torch.linspace(0.05, 1.0, 30, dtype=F64)
    v = project_l1_box(x, z, eps)
    assert ((v - x).abs().sum(dim=1) <= eps + 1e-12).all() and v.min() >= 0 and v.max() <= 1
    rng = torch.Generator().manual_seed(1)
    for _ in range(300):
        share = torch.rand((30, d), generator=rng, dtype=F64) ** 4 + 1e-9
        w = (
            x
            + eps[:, None]
            * share
            / share.sum(dim=1, keepdim=True)
            * torch.randn((30, d), generator=rng, dtype=F64).sign()
        )
        w = w.clamp(0, 1)
        assert (((z - v) * (w - v)).sum(dim=1) <= 1e-10).all()


def test_box_projection_against_brute_force_in_three_dimensions() -> None:
    x, z = problem(6, 3, seed=3)
    eps = torch.full((6,), 0.35, dtype=F64)
    v = project_l1_box(x, z, eps)
    grid = torch.linspace(0, 1, 41, dtype=F64)
    points = torch.tensor(list(itertools.product(grid.tolist(), repeat=3)), dtype=F64)
    for row in range(6):
        legal = points[(points - x[row]).abs().sum(dim=1) <= eps[row]]
        if len(legal):
            assert (v[row] - z[row]).norm() <= (legal - z[row]).norm(dim=1).min() + 1e-12


def test_box_projection_where_nothing_may_move() -> None:
    """No room at all, z = x, and ties of all sizes."""
    x = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]], dtype=F64)
    z = torch.tensor([[-1.0, 2.0, -3.0], [0.5, 0.5, 0.5], [1.2, 1.2, 1.2]], dtype=F64)
    v = project_l1_box(x, z, torch.tensor([0.5, 0.5, 0.6], dtype=F64))
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.5], [0.4, 0.4, 0.4]], dtype=F64)
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-14)


def test_box_projection_keeps_a_thousand_images_legal_in_float32() -> None:
    x, z = (t.float() for t in problem(1000, 64, seed=5))
    x.clamp_(0, 1)
    eps = torch.rand(1000, generator=torch.Generator().manual_seed(2)) * 6
    v = project_l1_box(x, z, eps)
    assert ((v - x).abs().sum(dim=1) <= eps + 1e-5).all() and v.min() >= 0 and v.max() <= 1


@pytest.mark.parametrize("d", [1, 3, 30])
def test_plain_projection_meets_its_kkt_conditions(d: int) -> None:
    """Outside: Σ|v| = ε, one λ ≥ 0 for all that moved, and no more than λ where v is 0. Inside: v = δ."""
    delta = 0.6 * torch.randn((50, d), generator=torch.Generator().manual_seed(d), dtype=F64)
    eps = torch.linspace(0, 2, 50, dtype=F64)
    v = project_l1(delta, eps)
    inside = delta.abs().sum(dim=1) <= eps
    assert torch.equal(v[inside], delta[inside])
    assert (v * delta >= 0).all()
    torch.testing.assert_close(v[~inside].abs().sum(dim=1), eps[~inside], rtol=0, atol=1e-12)
    taken = (delta - v).abs()
    for row in (~inside).nonzero().flatten().tolist():
        support = v[row] != 0
        lam = taken[row].max()
        torch.testing.assert_close(taken[row][support], lam.expand(int(support.sum())), rtol=0, atol=1e-12)
        assert (taken[row][~support] <= lam + 1e-12).all()


def test_without_the_box_both_projections_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.full((20, 12), 0.5, dtype=F64)
    delta = 0.3 * torch.rand((20, 12), generator=rng, dtype=F64) - 0.15
    eps = torch.linspace(0.05, 1, 20, dtype=F64)
    torch.testing.assert_close(project_l1_box(x, x + delta, eps) - x, project_l1(delta, eps), rtol=0, atol=1e-14)
