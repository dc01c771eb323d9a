"""Constraint relaxation against its description, one example and one step at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks.gradient.constraint_relaxation import ConstraintRelaxation
from atbench.errors import ConfigError
from tests.support.targets import Aim, draws
from tests.support.traces import N, Trace, uniform, world


def noise(row: int, *place: int | str) -> Tensor:
    return uniform((1, 8, 8), row, *place)


def slow_pass(trace: Trace, t: int, row: int, place: tuple[int | str, ...], steps: int, cycles: int) -> bool:
    """One pass towards t; says whether a margin below 0.05 was seen."""
    scale, near, third, label = 1.0, False, steps // 3, trace.y
    point = (trace.x + trace.eps * noise(row, *place, "start")).clamp(0, 1)
    for cycle in range(cycles):
        scale = max(scale / 2, 0.05)
        for step in range(steps):
            if step == 2 * third:
                point = trace.project(point, trace.eps * (1 - scale))
                point = (point + trace.eps * scale * noise(row, *place, "cycle", cycle)).clamp(0, 1)
            logits = trace.network(point)[0]
            behind = float(logits[label] - logits[t])
            copy = trace.project(point) if step <= third else point
            near |= (-trace.margin(copy) if step <= third else behind) < 0.05
            if trace.see(copy):
                return near
            radius = trace.eps * (1 + scale) if step < third else trace.eps
            point = trace.step(point, lambda z: z[t] - z[label], scale * trace.eps, radius)
            if step == 2 * third - 1 and behind > scale:
                return near
    trace.see(point)
    return near


def slow(trace: Trace, row: int, sizes: list[float], steps: int, cycles: int, targets: int, restarts: int) -> int:
    """The whole attack; returns how many passes stage C made."""
    start = (trace.x + trace.eps * noise(row, "first")).clamp(0, 1)
    log_p = [(lambda z: -z.log_softmax(dim=0)[trace.y], size * trace.eps) for size in sizes]
    logits = trace.network(trace.climb(start, log_p))[0].tolist()
    order = sorted((k for k in range(len(logits)) if k != trace.y), key=lambda k: -logits[k])[:targets]
    near, extra = [False] * targets, 0
    for turn in range(1 + restarts):
        for place, t in enumerate(order):
            if trace.broken:
                return extra
            if turn == 0:
                near[place] = slow_pass(trace, t, row, ("turn", turn, place), steps, cycles)
            elif near[place]:
                slow_pass(trace, t, row, ("turn", turn, place), steps, cycles)
                extra += 1
    return extra


@pytest.mark.parametrize(
    ("sharpness", "eps", "reset_scale", "again"),
    [(1, 0.02, True, True), (4, 0.004, False, True), (10, 0.02, True, False)],  # the last one gives classes up
)
def test_agrees_with_the_description(sharpness: float, eps: float, reset_scale: bool, again: bool) -> None:
    network, x, y = world()
    with torch.no_grad():
        network.head.weight.mul_(sharpness)
        y = network(x).argmax(dim=1)
    options = {"steps": 9, "cycles": 3, "targets": 2, "restarts": 2}
    attack = ConstraintRelaxation("linf", eps, first_steps=6, reset_scale=reset_scale, **options)
    x_adv = attack(Aim(network), x, y, draws(N))
    sizes = [0.5, 0.5, 0.5, 0.25, 0.5, 0.5] if reset_scale else [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    broken, extra = 0, 0
    for row in range(N):
        trace = Trace(network, x[row : row + 1], int(y[row]), eps)
        extra += slow(trace, row, sizes, **options)
        broken += trace.broken
        torch.testing.assert_close(x_adv[row : row + 1], trace.best, rtol=0, atol=1e-12)
    assert 0 < broken < N and (extra > 0) == again, "stages that were never asked for were not compared"


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (3, 2), (10, 3), (100, 5), (200, 6)])
def test_how_many_classes_are_tried(classes: int, count: int) -> None:
    assert ConstraintRelaxation("linf", 0.1).count(classes) == count
    assert ConstraintRelaxation("linf", 0.1, targets=9).count(classes) == min(9, classes - 1)


def test_the_first_stage_as_the_code_runs_it_and_as_it_was_meant() -> None:
    y = torch.zeros(1, dtype=torch.long)
    for reset, expected in ((True, [4.0] * 5 + [2.0] + [4.0] * 4), (False, [4.0] * 5 + [2.0] * 5)):
        attack = ConstraintRelaxation("linf", 8 / 255, reset_scale=reset)
        sizes = [leg.step_size * 255 for leg in attack._first(Aim(torch.nn.Identity()), y) for _ in range(leg.steps)]
        assert sizes == pytest.approx(expected)


def test_no_class_to_go_to_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.targets"):
        ConstraintRelaxation("linf", 0.1, targets=0)
