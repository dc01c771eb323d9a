"""Learning-rate schedules as functions of the share of training done: nothing to save, replays and any number of epochs
included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import cos, pi
from typing import Protocol


class Schedule(Protocol):
    """fraction in [0, 1) → factor on the optimizer's learning rate."""

    def __call__(self, fraction: float) -> float: ...


class Piecewise:
    """gamma^(number of milestones passed); a milestone at fraction f acts from the first step with fraction ≥ f."""

    def __init__(self, milestones: Sequence[float], gamma: float) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma

    def __call__(self, fraction: float) -> float:
        return self.gamma ** bisect_right(self.milestones, fraction + 1e-12)


class LinearTail:
    """1 until `start`, then linear to 0 at the end."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, fraction: float) -> float:
        return min(1.0, (1 - fraction) / (1 - self.start))


class OneCycle:
    """Cosine rise from 1/div to 1 over the share `warmup`, cosine fall to `final` (Smith & Topin 2019; PyTorch's
    OneCycleLR, by step).
    """

    def __init__(self, warmup: float, div: float = 25.0, final: float = 0.0) -> None:
        self.warmup, self.low, self.final = warmup, 1 / div, final

    def __call__(self, fraction: float) -> float:
        if fraction < self.warmup:
            return self.low + (1 - self.low) * (1 - cos(pi * fraction / self.warmup)) / 2
        return self.final + (1 - self.final) * (1 + cos(pi * (fraction - self.warmup) / (1 - self.warmup))) / 2
