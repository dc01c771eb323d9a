"""Learning rates as functions of the share of training done."""

from __future__ import annotations

import pytest
import torch

from atbench.training.schedules import LinearTail, OneCycle, Piecewise


def test_piecewise_drops_exactly_at_its_milestones() -> None:
    schedule = Piecewise([0.75, 0.5], 0.1)
    assert [schedule(step / 200) for step in (0, 99, 100, 149, 150, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_linear_tail_is_constant_then_linear_to_zero() -> None:
    schedule = LinearTail(0.6)
    assert schedule(0.0) == schedule(0.6) == 1
    assert schedule(0.8) == pytest.approx(0.5)
    assert schedule(1.0) == 0


def test_one_cycle_is_torchs_at_every_step() -> None:
    steps = 50
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    # torch counts its last step as the end of the fall, and its first as the very start.
    cycle = torch.optim.lr_scheduler.OneCycleLR
    theirs = cycle(optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=0.3, div_factor=25)
    ours = OneCycle(warmup=(0.3 * (steps + 1) - 1) / steps, div=25, final=1 / 25e4)
    for step in range(steps):
        assert ours(step / steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=2e-5)
        optimizer.step()
        theirs.step()
