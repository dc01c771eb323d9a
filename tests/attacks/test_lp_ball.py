"""Balls: what they project to, how long their steps and samples are, and that a joint draw decides the samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import BALLS, L1, Ball, ball
from atbench.attacks.norms.lp_ball import clip
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws, generator

SHAPE = (6, 2, 4, 4)
NORMS = tuple(BALLS)


def images(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(seed: int = 1) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(rank: int = 0, world: int = 1) -> Draws:
    return Draws(generator("cpu", 0, "test"), rank, world)


@pytest.fixture(params=NORMS)
def kind(request: pytest.FixtureRequest) -> Ball:
    return ball(request.param)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.7, torch.tensor([0.0, 0.01, 0.1, 0.5, 1.0, 9.0])])
def test_projection_is_legal_and_idempotent(kind: Ball, eps: float | Tensor) -> None:
    x, far = images(), images() + noise()
    near = kind.project(x, far, eps)
    assert (kind.norm(near - x) <= torch.as_tensor(eps, dtype=x.dtype) + 1e-12).all()
    assert near.min() >= 0 and near.max() <= 1
    torch.testing.assert_close(kind.project(x, near, eps), near, rtol=0, atol=1e-14)


def test_a_legal_point_stays(kind: Ball) -> None:
    x = images()
    inside = (x + 1e-3 * noise()).clamp(0, 1)
    torch.testing.assert_close(kind.project(x, inside, 5.0), inside, rtol=0, atol=1e-15)
    small = 1e-3 * noise()
    torch.testing.assert_close(kind.shrink(small, 5.0), small, rtol=0, atol=1e-18)


def test_projection_does_not_write_into_its_arguments(kind: Ball) -> None:
    x, far = images(), images() + noise()
    before = x.clone(), far.clone()
    kind.project(x, far, 0.1)
    kind.shrink(far, 0.1)
    assert torch.equal(x, before[0]) and torch.equal(far, before[1])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.5, 0.25), (-torch.inf, 1.0)])
def test_the_clip_passes_the_gradient_up_to_its_bounds(low: float, high: float) -> None:
    """On every torch; `Tensor.clamp` does so up to 2.12 alone."""
    x = torch.tensor([-2.0, low, 0.1, 0.2, high, 3.0], dtype=torch.float64).nan_to_num(neginf=-9).requires_grad_()
    clipped = clip(x, low, high)
    assert torch.equal(clipped, x.detach().clamp(low, high))
    assert torch.equal(torch.autograd.grad(clipped.sum(), x)[0], ((x >= low) & (x <= high)).double())


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_joint_projection_beats_every_other_legal_point(name: str) -> None:
    """Ball and box at once: no legal point among many is closer to the target."""
    kind, x, far, eps = ball(name), images(), images() + noise(), 0.4
    best = (kind.project(x, far, eps) - far).flatten(1).norm(dim=1)
    for seed in range(50):
        rival = kind.project(x, (x + kind.sample(x, eps, Draws(generator("cpu", seed)))).clamp(0, 1), eps)
        assert (best <= (rival - far).flatten(1).norm(dim=1) + 1e-12).all()


@pytest.mark.parametrize("box_first", [False, True])
def test_l2_goes_to_ball_and_box_in_the_order_it_is_told(box_first: bool) -> None:
    """By a slow loop over images; black and white pixels make the orders differ, and the box first is the longer δ."""
    x, eps = images().round(), 0.7
    far = x + noise()
    found = ball("l2", box_first=box_first).project(x, far, eps)
    for row in range(len(x)):
        point = far[row].clamp(0, 1) if box_first else far[row]
        delta = point - x[row]
        point = x[row] + delta * min(1.0, eps / float(delta.norm()))
        torch.testing.assert_close(found[row], point if box_first else point.clamp(0, 1), rtol=0, atol=1e-14)
    length = ball("l2").norm(found - x)
    assert (length - eps).abs().max() < 1e-12 if box_first else (length < eps - 0.05).all()


def test_shrink_reaches_the_surface_and_only_from_outside(kind: Ball) -> None:
    delta = noise()
    eps = torch.tensor([0.1, 0.2, 0.3, 0.5, 100.0, 200.0], dtype=torch.float64)
    length = kind.norm(kind.shrink(delta, eps))
    expected = torch.minimum(eps, kind.norm(delta))
    torch.testing.assert_close(length, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_steepest_attains_the_dual_norm(name: str, dual: float) -> None:
    """max ⟨g, d⟩ over ‖d‖_p = 1 is ‖g‖_q, 1/p + 1/q = 1."""
    grad, kind = noise(), ball(name)
    step = kind.steepest(grad)
    torch.testing.assert_close(kind.norm(step), torch.ones(len(grad), dtype=torch.float64))
    torch.testing.assert_close((grad * step).flatten(1).sum(dim=1), grad.flatten(1).norm(p=dual, dim=1))


def test_steepest_of_l1_is_exact_with_one_pixel_and_sparse_with_more() -> None:
    grad = noise()
    exact = (grad * L1(sparsity=0.0).steepest(grad)).flatten(1).sum(dim=1)
    torch.testing.assert_close(exact, grad.flatten(1).abs().amax(dim=1))
    step = L1(sparsity=0.25).steepest(grad).flatten(1)
    assert ((step != 0).sum(dim=1) == 8).all()
    torch.testing.assert_close(step.norm(p=1, dim=1), torch.ones(len(step), dtype=torch.float64))
    weakest = grad.flatten(1).abs().masked_fill(step == 0, torch.inf).amin(dim=1)
    assert (weakest >= grad.flatten(1).abs().masked_fill(step != 0, 0).amax(dim=1)).all()


def test_a_projector_projects(kind: Ball) -> None:
    x, far, eps = images(), images() + noise(), torch.linspace(0, 1, len(images()), dtype=torch.float64)
    project = kind.projector(x, eps.view(-1, 1, 1, 1))
    for point in (far, x, 2 * far):
        assert torch.equal(project(point), kind.project(x, point, eps))


@pytest.mark.parametrize("length", [0.3, torch.linspace(0.1, 2.0, 6, dtype=torch.float64).view(-1, 1, 1, 1)])
def test_a_step_in_the_open_is_the_steepest(kind: Ball, length: float | Tensor) -> None:
    """Far from the edges of the box, where only L1 would look at them."""
    length = torch.as_tensor(length, dtype=torch.float64)
    x, grad = torch.full(SHAPE, 0.5, dtype=torch.float64), noise()
    far = 1 if kind.p == 1 else 5  # longer steps leave the box in the other norms, and the projection is for later
    expected = x + 0.2 * far * length * kind.steepest(grad)
    torch.testing.assert_close(kind.ascend(x, grad, 0.2 * far * length), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5])
def test_a_step_in_l1_goes_round_the_pixels_that_are_full(sparsity: float) -> None:
    """By a slow loop over pixels, from the heaviest on, none of which leaves the box or has more than its share."""
    x, grad, length = images().round(decimals=1), noise(), 1.7
    x[:, 0] = x[:, 0].round()  # half of the pixels black or white
    grad[0, 0] = 0
    found = L1(sparsity).ascend(x, grad, torch.tensor(length))
    k = max(1, round(sparsity * 32))
    for row in range(len(x)):
        point, slope, left = x[row].flatten().clone(), grad[row].flatten(), length
        for pixel in slope.abs().argsort(descending=True).tolist():
            sign = float(slope[pixel].sign())
            room = 0.0 if sign == 0 else float(1 - point[pixel] if sign > 0 else point[pixel])
            move = min(room, length / k, left)
            point[pixel] += sign * move
            left -= move
        torch.testing.assert_close(found[row].flatten(), point, rtol=0, atol=1e-6)
        assert left < (1e-6 if sparsity < 0.5 else length / k) and found.min() >= -1e-12 and found.max() <= 1 + 1e-12


def test_zero_gradient_gives_no_step(kind: Ball) -> None:
    step = kind.steepest(torch.zeros(SHAPE))
    assert not step.any() and step.isfinite().all()


def test_samples_fill_the_ball(kind: Ball) -> None:
    """Inside, per example, and with radii like u^(1/d): far out, but not all on the surface."""
    x = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    eps = torch.linspace(0.1, 2.0, len(x), dtype=torch.float64)
    radius = kind.norm(kind.sample(x, eps, draws())) / eps
    assert radius.max() <= 1 + 1e-12
    # P(radius ≤ r) = r^d for the uniform distribution on a d-dimensional ball of any norm.
    for r in (0.5, 0.7, 0.9):
        assert (radius <= r).double().mean().item() == pytest.approx(r**4, abs=0.025)


def test_samples_are_rows_of_the_joint_draw(kind: Ball) -> None:
    x = images()
    whole = kind.sample(x, 0.3, draws())
    parts = [kind.sample(x[3 * rank : 3 * rank + 3], 0.3, draws(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.norm: l3"):
        ball("l3")
