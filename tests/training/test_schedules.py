"""Schedules against the tools they are named after, and at the steps where they turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from atbench.errors import ConfigError
from atbench.training.param_groups import Group
from atbench.training.schedules import (
    ByEpoch,
    CosineByEpoch,
    Cyclic,
    ExponentialByEpoch,
    InverseTime,
    OneCycle,
    OneCycleByEpoch,
    Piecewise,
    PiecewiseLinear,
    Product,
    Triangular,
    epoch_of,
)

STEPS = 7  # in an epoch


def rates(schedule: Callable[[float], float], epochs: int) -> list[list[float]]:
    """The factor at every step of every epoch, by the trainer's own arithmetic."""
    return [[schedule((e * STEPS + s) / (epochs * STEPS)) for s in range(STEPS)] for e in range(epochs)]


def torchs(make: Callable[..., Any], count: int, lr: float, **options: Any) -> list[float]:
    """The rates of one of PyTorch's schedulers over so many calls."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, found = make(optimizer, **options), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_piecewise_drops_exactly_at_its_milestones() -> None:
    schedule = Piecewise([0.75, 0.5], 0.1)
    assert [schedule(step / 200) for step in (0, 99, 100, 149, 150, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_broken_line_is_numpys() -> None:
    schedule = PiecewiseLinear([0, 0.4, 0.8, 1], [0.01, 1, 0.05, 0])
    at = [0.0, 0.1, 0.4, 0.5, 0.8, 0.99, 1.0]
    expected = numpy.interp(at, [0, 0.4, 0.8, 1], [0.01, 1, 0.05, 0])
    assert [schedule(fraction) for fraction in at] == pytest.approx(list(expected), abs=1e-15)


@pytest.mark.parametrize("first", [0, 1])
def test_a_schedule_by_epoch_holds_one_value_through_each(first: int) -> None:
    """numpy.interp at the number of the epoch, which counts from `first`."""
    found = rates(ByEpoch(PiecewiseLinear([0, 1 / 3, 2 / 3, 1], [1, 1, 0.1, 0.01]), 12, first), 12)
    for epoch, row in enumerate(found):
        expected = numpy.interp([epoch + first], [0, 4, 8, 12], [1, 1, 0.1, 0.01])[0]
        assert row == pytest.approx([expected] * STEPS, abs=1e-14)


@pytest.mark.parametrize(("at", "factors"), [([0, 1], [1]), ([0, 0.5], [1, 0]), ([0, 0.6, 0.4, 1], [1, 1, 1, 0])])
def test_a_line_that_does_not_lead_from_start_to_end_is_refused(at: list[float], factors: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"train\.schedule\.at"):
        PiecewiseLinear(at, factors)


def test_inverse_time_is_torch7s_decay_by_step() -> None:
    steps, decay = 72_000, 5e-6
    schedule = InverseTime(decay * steps)
    for step in (0, 1, 600, 36_000, 71_999):
        assert 0.01 * schedule(step / steps) == pytest.approx(0.01 / (1 + step * decay), rel=1e-12)


def test_product_is_keras_decay_with_drops() -> None:
    """lr / (1 + decay · step), divided by ten at a half."""
    schedule = Product([InverseTime(1e-4 * 1000), Piecewise([0.5], 0.1)])
    for step in (0, 499, 500, 999):
        assert schedule(step / 1000) == pytest.approx((0.1 if step >= 500 else 1.0) / (1 + 1e-4 * step), rel=1e-12)


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


@pytest.mark.parametrize("epochs", [10, 37, 100])
def test_one_cycle_by_epoch_is_pytorchs(epochs: int) -> None:
    wanted = torchs(torch.optim.lr_scheduler.OneCycleLR, epochs, 0.1, max_lr=1.0, total_steps=epochs)[:epochs]
    found = rates(OneCycleByEpoch(epochs), epochs)
    assert [row[0] for row in found] == pytest.approx(wanted, abs=1e-12)
    assert all(len(set(row)) == 1 for row in found), "an epoch has one rate"


def test_one_cycle_at_the_epochs_that_the_benchmark_names() -> None:
    found = rates(OneCycleByEpoch(100), 100)
    assert [0.1 * found[epoch][0] for epoch in (0, 29, 99)] == pytest.approx([0.004, 0.1, 4e-7], rel=1e-9)


def test_one_cycle_by_epoch_cycles_the_momentum_as_pytorch_does() -> None:
    """Rate and momentum of all epochs, as a group has them; at epoch 76 they are 0.0244 and 0.926."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.1, total_steps=100)
    group = Group("model", torch.nn.Linear(1, 1), torch.optim.SGD([parameter], lr=0.1), OneCycleByEpoch(100))
    found = {}
    for epoch in range(100):
        for step in (0, STEPS - 1):
            group.set_rate((epoch * STEPS + step) / (100 * STEPS))
            ours, wanted = (each.param_groups[0] for each in (group.optimizer, theirs))
            assert (ours["lr"], ours["momentum"]) == pytest.approx((wanted["lr"], wanted["momentum"]), abs=1e-14)
        found[epoch] = (round(ours["lr"], 4), round(ours["momentum"], 3))
        theirs.step()
        if epoch < 99:
            scheduler.step()
    named = {epoch: found[epoch] for epoch in (0, 28, 29, 76, 99)}
    assert named == {0: (0.004, 0.95), 28: (0.0997, 0.85), 29: (0.1, 0.85), 76: (0.0244, 0.926), 99: (0.0, 0.95)}


def test_triangular_is_pytorchs_cyclic_rate() -> None:
    epochs, half = 4, 2 * STEPS
    options = {"base_lr": 0.0, "max_lr": 1.0, "step_size_up": half, "step_size_down": half}
    wanted = torchs(torch.optim.lr_scheduler.CyclicLR, epochs * STEPS, 0.1, **options)
    assert [rate for row in rates(Triangular(0.5), epochs) for rate in row] == pytest.approx(wanted, abs=1e-12)


def test_triangular_turns_at_its_peak() -> None:
    assert [Triangular(0.4)(f) for f in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("epochs", [5, 200])
def test_cosine_by_epoch_is_pytorchs(epochs: int) -> None:
    wanted = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, epochs, 1.0, T_max=epochs)
    found = rates(CosineByEpoch(epochs), epochs)
    assert [row[0] for row in found] == pytest.approx(wanted, abs=1e-9)
    assert all(len(set(row)) == 1 for row in found)


def test_exponential_by_epoch_is_pytorchs() -> None:
    wanted = torchs(torch.optim.lr_scheduler.ExponentialLR, 12, 1.0, gamma=0.95)
    found = rates(ExponentialByEpoch(12, 0.95), 12)
    assert [row[0] for row in found] == pytest.approx(wanted, abs=1e-12)
    assert all(len(set(row)) == 1 for row in found)


def test_piecewise_drops_at_the_first_step_of_an_epoch() -> None:
    found = rates(Piecewise([74 / 76], 0.1), 76)
    assert found[73] == [1.0] * STEPS and found[74] == pytest.approx([0.1] * STEPS)


def test_piecewise_with_a_factor_for_each_milestone() -> None:
    found = rates(Piecewise([0.4, 0.6, 0.8], [3 / 10, 1 / 3, 3 / 10]), 10)
    assert [0.3 * found[epoch][0] for epoch in (0, 4, 6, 8)] == pytest.approx([0.3, 0.09, 0.03, 0.009])
    with pytest.raises(ConfigError, match="2 milestones"):
        Piecewise([0.5, 0.75], [0.1])
    assert rates(Piecewise([], 1.0), 2) == [[1.0] * STEPS] * 2


@pytest.mark.parametrize("epochs", [1, 3, 7, 30, 110, 300])
def test_rounding_moves_no_step_into_another_epoch(epochs: int) -> None:
    for epoch in range(epochs):
        for step in range(STEPS):
            assert epoch_of((epoch * STEPS + step) / (epochs * STEPS), epochs) == epoch


def test_cyclic_is_torchs_cyclic_lr_with_its_momentum() -> None:
    """Rate and momentum of every update, as a group has them."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CyclicLR(theirs, 0.0, 0.2, step_size_up=6, step_size_down=6)
    ours = Group("model", torch.nn.Linear(1, 1), torch.optim.SGD([parameter], lr=0.2, momentum=0.5), Cyclic(0.5))
    for step in range(12):
        ours.set_rate(step / 12)
        found, wanted = (each.param_groups[0] for each in (ours.optimizer, theirs))
        assert found["lr"] == pytest.approx(wanted["lr"], abs=1e-15)
        assert found["momentum"] == pytest.approx(wanted["momentum"], abs=1e-15)
        theirs.step()
        scheduler.step()
    ours.set_rate(0.5)
    assert ours.optimizer.param_groups[0]["momentum"] == pytest.approx(0.8)


def test_a_momentum_is_cycled_only_where_there_is_one() -> None:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match=r"train\.schedule.*Adam"):
        Group("model", torch.nn.Linear(1, 1), adam, Cyclic(0.5))
    with pytest.raises(ConfigError, match=r"train\.schedule: OneCycleByEpoch.*Adam"):
        Group("model", torch.nn.Linear(1, 1), adam, OneCycleByEpoch(10))
