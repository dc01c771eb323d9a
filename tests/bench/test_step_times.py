"""Times of steps: what counts, and what of it is the search."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from atbench.bench.few_steps import StepClock
from atbench.bench.pictures import pictures
from atbench.bench.steps import OurStep, configuration
from atbench.training import stopwatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORDS = ("dataset=digits", "model=cnn", "model.width=4", "attack.steps=1", "train.batch_size=4")


@pytest.mark.parametrize(("method", "share"), [("pgd_at", 1 / 3), ("free_at", 0.0)])
def test_the_searchs_share_is_that_of_the_step_that_is_timed(
    method: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second when it is read: between the ends of a step lie those of its search."""
    ticks = count()
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: float(next(ticks)))
    step = OurStep(configuration(f"method={method}", *WORDS), pictures((1, 8, 8), 20), CPU)
    step()
    assert [step.attack_share() for _ in range(2)] == pytest.approx([share, share])


@pytest.mark.parametrize(("device", "warm_up"), [(CPU, 0), (CUDA, 5)])
def test_a_long_first_step_counts_where_it_chooses_no_kernels(device: torch.device, warm_up: int) -> None:
    clock = StepClock(device, stamps=[0.0, 11.0])
    assert clock.warm_up == warm_up and clock() == (75 if device == CPU else 0)
    clock.stamps[1] = 9.0
    assert clock.warm_up == {"cpu": 1, "cuda": 5}[device.type] and clock() == 0


def test_a_clock_ends_after_its_steps_or_seconds() -> None:
    assert StepClock(CPU, most=3, stamps=[0.0, 1.0, 2.0])() == 0
    assert StepClock(CPU, most=3, stamps=[0.0, 1.0, 2.0, 3.0])() == 75
    clock = StepClock(CPU, most=30, seconds=4.0, stamps=[0.0, 3.0, 6.0, 7.1])
    assert clock() == 75 and clock.counted == 2 and clock.elapsed == pytest.approx(4.1)
