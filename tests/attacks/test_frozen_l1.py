"""MSD's L1 step as its authors' code makes it: pixels at exactly 0 or 1 stay where they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, ball, cross_entropy
from atbench.attacks.ascent.multi_norm import MultiSteepest
from atbench.errors import ConfigError
from tests.support.configs import resolved
from tests.support.union import RADII, SIZES, draws, images


def sloped(weights: Tensor) -> Objective:
    """An objective of images whose gradient has the signs and the order of `weights` at every point."""
    return Objective(lambda z: z.flatten(1) @ weights, lambda value: value)


@pytest.mark.parametrize(("l1_step", "moved"), [("code", [40, 41]), ("steepest", [0, 1])])
def test_the_code_moves_no_black_pixel_even_inward(l1_step: str, moved: list[int]) -> None:
    """Black pixels want to become lighter, and more than all others do; white ones darker. The code leaves both."""
    weights = torch.linspace(0.5, 0.1, 64, dtype=torch.float64)
    weights[:10], weights[10:20], weights[20:30] = 5.0, -4.0, 3.0
    weights[:2] = 6.0
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    x.view(-1)[:10], x.view(-1)[10:20] = 0.0, 1.0
    x.view(-1)[20:40] = 0.95  # closer to the bound than a step's share
    union = MultiSteepest({"l1": 1.0}, {"l1": 0.2}, 1, pixels=(2, 2), l1_step=l1_step)
    delta = (union(sloped(weights), x) - x).flatten()
    assert delta.nonzero().flatten().tolist() == moved
    torch.testing.assert_close(delta[moved], torch.full((2,), 0.1, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_the_code_freezes_a_pixel_that_it_has_brought_to_the_bound(place: float) -> None:
    sign = 1.0 if place else -1.0
    x = torch.full((1, 1, 1, 1), place, dtype=torch.float64)
    start = torch.full_like(x, abs(place - 0.3))
    for l1_step in MultiSteepest.L1_STEPS:
        there = MultiSteepest({"l1": 1.0}, {"l1": 0.15}, 6, pixels=(1, 1), l1_step=l1_step)
        end = there(sloped(torch.tensor([sign], dtype=torch.float64)), x, start=start)
        # 0.3 away: a step to 0.15, and the next would be no further away than a step: there the code stops.
        assert float((end - place).abs()) == pytest.approx(0.15 if l1_step == "code" else 0.0, abs=1e-12)


def test_the_code_s_step_is_legal_and_a_choice_that_there_is_none_of_is_refused() -> None:
    network, x, y = images()
    x = x.round(decimals=1).clamp(0, 1)
    found = MultiSteepest({"l1": 0.3}, {"l1": 0.2}, 8, pixels=(2, 2), l1_step="code")(
        Objective(network, cross_entropy, y), x, rng=draws()
    )
    assert (
        bool((ball("l1").norm(found - x) <= 0.3 + 1e-12).all()) and float(found.min()) >= 0 and float(found.max()) <= 1
    )
    assert not torch.equal(found, x) and torch.equal(found[(x == 0) | (x == 1)], x[(x == 0) | (x == 1)])
    with pytest.raises(ConfigError, match=r"method\.l1_step.*code or steepest"):
        MultiSteepest(RADII, SIZES, 3, l1_step="both")


def test_the_paper_s_l1_step_is_the_code_s() -> None:
    assert resolved("experiment=paper/msd").method.l1_step == resolved("method=msd").method.l1_step == "code"
