"""The steps of APGD against traces by hand; against the authors' code, see test_apgd.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, ball
from atbench.attacks.ascent.loop import Ascent, Stepper
from atbench.attacks.gradient.apgd_schedule import APGDSteps, SparseAPGDSteps, checkpoints

F64 = torch.float64


def points_of(
    value: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, stepper: Stepper, norm: str, eps: float, steps: int
) -> Tensor:
    """(steps + 1, pixels): the points that one ascent of one image evaluates."""
    points: list[Tensor] = []

    def network(z: Tensor) -> Tensor:
        points.append(z.detach().flatten())
        return torch.stack([value(z), torch.zeros(1, dtype=F64)], dim=1)

    objective = Objective(network, lambda z: z[:, 0])
    Ascent(objective, x, ball(norm), eps, stepper, steps, return_point="first_or_best").run(start)
    return torch.stack(points)


def test_ascent_of_a_parabola_is_as_by_hand() -> None:
    """−(x − 0.6)² in 0.5 ± 0.25 from 0.5, η = 0.5; a checkpoint after step 2 and after each later one.

    1: to the edge, 0.75. 2: u = 0.25, the last step's weight is ¼: 0.4375; no rise in two steps: η = 0.25, back to 0.5.
    3: u = 0.75, last point 0.75: 0.625, the best. 4: 0.46875, no rise: η = 0.125, back to 0.625.
    5: 0.53125, which is a rise over step 4. 6: 0.6015625.
    """
    x = torch.full((1, 1, 1, 1), 0.5, dtype=F64)
    assert checkpoints(6) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}
    steps = APGDSteps(ball("linf"), 0.25, 10, 0.75)
    points = points_of(lambda z: -((z - 0.6) ** 2).flatten(), x, x, steps, "linf", 0.25, 10)
    by_hand = torch.tensor([0.5, 0.75, 0.4375, 0.625, 0.46875, 0.53125, 0.6015625], dtype=F64)
    torch.testing.assert_close(points[:7, 0], by_hand, rtol=0, atol=1e-15)


def test_sparse_steps_are_as_by_hand() -> None:
    """4x₁ + 3x₂ + 2x₃ + x₄ in the L1 ball of 0.4, from δ = (0, 0.1, 0.1, 0.1): 3 of 4 pixels moved.

    1: 3 / (1.5·4) = ½, two pixels by 0.2 each; projected with λ = 0.075. 4 pixels moved: η = 0.4 / 1.5.
    2: ⅔, three pixels by η / 3; λ = 0.0806 takes the last one to 0. 3 of 4 is fewer than 95 %: η = 0.4 again.
    3: two pixels by 0.2 each; λ = 0.1833.
    """
    x = torch.full((1, 1, 2, 2), 0.5, dtype=F64)
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64)
    start = x + torch.tensor([0.0, 0.1, 0.1, 0.1], dtype=F64).view_as(x)
    points = points_of(lambda z: z.flatten(1) @ weight, x, start, SparseAPGDSteps(0.4, 4), "l1", 0.4, 4)
    by_hand = [[0, 0.1, 0.1, 0.1], [0.125, 0.225, 0.025, 0.025], [2 / 15, 7 / 30, 1 / 30, 0], [0.15, 0.25, 0, 0]]
    torch.testing.assert_close(points[:4] - 0.5, torch.tensor(by_hand, dtype=F64), rtol=0, atol=1e-14)


def test_checkpoints_of_the_paper() -> None:
    """p = 0, 0.22, then p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), of 100 steps."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoints(1) == {1: 1} and checkpoints(0) == {}


@pytest.mark.parametrize(("above", "fourth"), [(0.0, 0.59375), (1.0, 0.6875)])
def test_the_first_step_rises_if_its_value_is_positive(above: float, fourth: float) -> None:
    """−(x − 0.51)² + above in 0.5 ± 0.25 from 0.25: 0.75, 0.5, both higher than the point before; then 0.625, lower.

    The checkpoint after step 2 wants two rises. Below 0 it counts one and halves η, so that step 4, after the next
    checkpoint has halved it too, goes from 0.5 to u = 0.625 instead of 0.75.
    """
    x = torch.full((1, 1, 1, 1), 0.5, dtype=F64)
    steps = APGDSteps(ball("linf"), 0.25, 10, 0.75)
    points = points_of(lambda z: above - ((z - 0.51) ** 2).flatten(), x, x - 0.25, steps, "linf", 0.25, 10)
    by_hand = torch.tensor([0.25, 0.75, 0.5, 0.625, fourth], dtype=F64)
    torch.testing.assert_close(points[:5, 0], by_hand, rtol=0, atol=1e-15)
