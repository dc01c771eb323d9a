"""One try of Square Attack in each norm, against slow transcriptions of the algorithms and AutoAttack's shapes."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from atbench.attacks import ball
from atbench.attacks.black_box.square_norms import (
    INSIDE,
    WINDOWS,
    L1Windows,
    PyramidWindows,
    Windows,
    pyramid,
    random_offset,
)
from atbench.attacks.norms.l1_projection import project_l1_box

EPS = {"linf": 0.1, "l2": 0.8, "l1": 3.0}
SHAPES = [(3, 8, 8), (1, 7, 12), (2, 5, 3), (1, 1, 4)]


def begun(norm: str, shape: tuple[int, ...] = (3, 8, 8), low: float = 0.0, high: float = 1.0, n: int = 12) -> Windows:
    """A start in `n` images with pixels from [low, high]."""
    torch.manual_seed(0)
    x = low + (high - low) * torch.rand(n, *shape, dtype=torch.float64)
    windows = WINDOWS[norm](x, EPS[norm])
    windows.start(torch.rand(n, windows.tiles(), dtype=torch.float64) * 2 - 1)
    return windows


def numbers(windows: Windows) -> Tensor:
    size = (len(windows.x), windows.numbers + windows.x.shape[1])
    return torch.rand(size, dtype=torch.float64) * 2 - 1


def corner(u: Tensor, side: int, shape: torch.Size) -> tuple[slice, slice]:
    top, left = (int(random_offset(u[axis : axis + 1], shape[-2 + axis] - side)) for axis in (0, 1))
    return slice(top, top + side), slice(left, left + side)


def test_every_place_is_as_likely_as_any_other_and_both_ends_are_places() -> None:
    u = torch.linspace(-1, 1, 40001)
    counts = random_offset(u, 4).bincount()
    assert len(counts) == 5 and (counts - 8000).abs().max() <= 1
    assert random_offset(torch.tensor([-1.0, 1.0]), 0).tolist() == [0, 0]


@pytest.mark.parametrize(("norm", "power", "p"), [("L2", 2, 2.0), ("L1", 4, 1.0)])
def test_pyramids_are_those_of_autoattack(norm: str, power: int, p: float) -> None:
    theirs = SquareAttack(None, norm=norm, eps=1.0, device="cpu")
    for side in range(2, 12):
        torch.manual_seed(1)  # lying and standing are a coin's choice there
        expected = theirs.eta(side)
        ours = pyramid(side, power, p).float()
        assert torch.allclose(ours, expected, atol=1e-6) or torch.allclose(ours.T, expected, atol=1e-6), side
    assert pyramid(1, power, p).tolist() == [[-1.0]]


@pytest.mark.parametrize("norm", list(WINDOWS))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_search_stays_legal_and_a_try_can_be_taken_back(norm: str, shape: tuple[int, ...]) -> None:
    windows = begun(norm, shape)
    for p in (0.8, 0.4, 0.1, 0.0):
        before, side = windows.image.clone(), windows.side(p)
        assert 1 <= side <= min(shape[1:])
        windows.propose(numbers(windows), side)
        tried = windows.image.clone()
        assert tried.min() >= 0 and tried.max() <= 1
        assert (ball(norm).norm(tried - windows.x) <= EPS[norm] * (1 + 1e-12)).all()
        keep = torch.arange(len(tried)) % 2 == 0
        windows.settle(keep)
        assert torch.equal(windows.image, torch.where(keep.view(-1, 1, 1, 1), tried, before))


def test_linf_starts_in_stripes_and_puts_squares_of_its_corners() -> None:
    windows = begun("linf", low=0.3, high=0.7)
    delta = windows.image - windows.x
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.1))
    torch.testing.assert_close(delta, delta[:, :, :1].expand_as(delta))
    for side in (8, 3, 1):
        u, expected = numbers(windows), windows.image.clone()
        for row, image in enumerate(expected):
            down, across = corner(u[row], side, image.shape)
            moved = image[:, down, across] + 2 * 0.1 * u[row, 2:].sign()[:, None, None]
            x = windows.x[row, :, down, across]
            image[:, down, across] = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
        windows.propose(u, side)
        torch.testing.assert_close(windows.image, expected)


def slow(windows: PyramidWindows, u: Tensor, side: int, row: int) -> Tensor:
    """δ of one example after Algorithm 3 of the paper (L1: its analogue), before ball and box."""
    p, channels = windows.p, windows.x.shape[1]
    delta = (windows.image - windows.x)[row].clone()
    first, second = (corner(u[at:], side, delta.shape) for at in (0, 2))
    eta = pyramid(side, windows.power, p)
    eta = eta.T if u[4] > 0 else eta
    union = torch.zeros(delta.shape[1:], dtype=torch.bool)
    union[first] = union[second] = True
    spare = windows.eps**p - delta.abs().pow(p).sum()
    fillings = []
    for channel in range(channels):
        old = delta[channel][first]
        new = u[5 + channel].sign() * eta + (old / old.norm(p=p) if old.norm(p=p) > 0 else 0)
        mass = delta[channel][union].abs().pow(p).sum() + spare / channels
        avail = mass.sqrt() if p == 2 else channels * mass
        fillings.append(avail * new / new.norm(p=p))
    delta[:, second[0], second[1]] = 0
    delta[:, first[0], first[1]] = torch.stack(fillings)
    return delta


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_l2_and_l1_move_a_budget_from_one_window_to_another(norm: str) -> None:
    windows = begun(norm)
    assert isinstance(windows, PyramidWindows)
    for side in (7, 5, 3):  # windows of 7 always overlap in images of 8
        u = numbers(windows)
        aim = windows.x + torch.stack([slow(windows, u[row], side, row) for row in range(len(u))])
        if norm == "l2":
            expected = aim.clamp(0, 1)
        else:
            radius = torch.full((len(u),), EPS[norm] * INSIDE, dtype=aim.dtype)
            expected = project_l1_box(windows.x.flatten(1), aim.flatten(1), radius).view_as(aim)
        windows.propose(u, side)
        torch.testing.assert_close(windows.image, expected, rtol=0, atol=1e-5)
        windows.settle(torch.ones(len(u), dtype=torch.bool))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_far_from_the_box_the_whole_budget_is_spent(norm: str) -> None:
    windows = begun(norm, low=0.5, high=0.5)
    windows.eps *= 0.25
    windows.image = windows.x + (windows.image - windows.x) / 8
    for _ in range(2):
        windows.propose(numbers(windows), 3)
        length = ball(norm).norm(windows.image - windows.x)
        torch.testing.assert_close(length, torch.full_like(length, EPS[norm] / 4), rtol=2e-5, atol=0)
        windows.settle(torch.ones(len(length), dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 0.01, 0.1, 1.0])
def test_the_quick_projection_is_the_exact_one(dtype: torch.dtype, scale: float) -> None:
    """Inside the ball, at images on the edge of the box, and where few pixels hold nearly everything."""
    torch.manual_seed(0)
    x = torch.rand(24, 3, 16, 16, dtype=dtype)
    x[:6], x[6:12] = 0, 1
    aim = x + scale * torch.randn_like(x) * torch.rand_like(x) ** -0.3
    windows = L1Windows(x, 4.0)
    radius = torch.full((24,), 4.0 * INSIDE, dtype=dtype)
    expected = project_l1_box(x.flatten(1), aim.flatten(1), radius)
    found = windows.project(aim).flatten(1)
    assert ((found - expected).abs().sum(dim=1) <= 1e-4).all()
    assert ((found - x.flatten(1)).abs().sum(dim=1) <= 4.0).all()
