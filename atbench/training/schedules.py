"""Learning-rate schedules: stateless functions of the fraction of training done."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import cos, pi, prod
from typing import Protocol, runtime_checkable

from atbench.config.ranges import AnyCount, Count, NotNegative, Positive, Share
from atbench.errors import ConfigError

ROUNDING = 1e-12  # (epoch · steps + step) / (epochs · steps) may fall short of an exact fraction


class Schedule(Protocol):
    """fraction in [0, 1) → factor on the optimizer's learning rate."""

    def __call__(self, fraction: float) -> float: ...


@runtime_checkable
class MomentumSchedule(Schedule, Protocol):
    """A schedule that sets SGD's momentum too, whatever the optimizer was given."""

    def momentum(self, fraction: float) -> float: ...


class Piecewise:
    """The product of gamma over the milestones passed; one at fraction f acts from the first step with fraction ≥ f.

    `gamma` is one factor for all milestones, or a list of one for each.
    """

    def __init__(self, milestones: Sequence[Share], gamma: NotNegative | Sequence[NotNegative]) -> None:
        factors = [gamma] * len(milestones) if isinstance(gamma, int | float) else list(gamma)
        if len(factors) != len(milestones):
            why = f"there are {len(milestones)} milestones"
            raise ConfigError("train.schedule.gamma", factors, why, "give one factor for each, or one for all")
        pairs = sorted(zip(milestones, factors, strict=True))
        self.milestones, self.gamma = [at for at, _ in pairs], [factor for _, factor in pairs]

    def __call__(self, fraction: float) -> float:
        return prod(self.gamma[: bisect_right(self.milestones, fraction + ROUNDING)])


class PiecewiseLinear:
    """Straight lines through (at, factor), `at` from 0 to 1 (numpy.interp)."""

    def __init__(self, at: Sequence[Share], factors: Sequence[NotNegative]) -> None:
        if len(at) != len(factors) or len(at) < 2 or list(at) != sorted(set(at)) or (at[0], at[-1]) != (0, 1):
            why = "is no way from 0 to 1 with a factor at each point"
            raise ConfigError("train.schedule.at", list(at), why, "let it rise from 0 to 1, with as many factors")
        self.at, self.factors = list(at), list(factors)

    def __call__(self, fraction: float) -> float:
        place = min(bisect_right(self.at, fraction), len(self.at) - 1)
        (low, high), (start, end) = self.at[place - 1 : place + 1], self.factors[place - 1 : place + 1]
        return start + (end - start) * (fraction - low) / (high - low)


class InverseTime:
    """1 / (1 + decay · fraction): `learningRateDecay` of Torch7's SGD, times the number of all steps."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, fraction: float) -> float:
        return 1 / (1 + self.decay * fraction)


class Product:
    """The product of several schedules: Keras' `decay` (`InverseTime`) under drops of the rate (`Piecewise`)."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.schedules = list(schedules)

    def __call__(self, fraction: float) -> float:
        return prod(schedule(fraction) for schedule in self.schedules)


class OneCycle:
    """Cosine rise from 1/div to 1 over the share `warmup`, cosine fall to `final` (Smith & Topin 2019; PyTorch's
    OneCycleLR, by step).
    """

    def __init__(self, warmup: Share, div: Positive = 25.0, final: NotNegative = 0.0) -> None:
        self.warmup, self.low, self.final = warmup, 1 / div, final

    def __call__(self, fraction: float) -> float:
        if fraction < self.warmup:
            return self.low + (1 - self.low) * (1 - cos(pi * fraction / self.warmup)) / 2
        return self.final + (1 - self.final) * (1 + cos(pi * (fraction - self.warmup) / (1 - self.warmup))) / 2


class Triangular:
    """Linear from 0 to 1 at the fraction `peak`, and linear back to 0 at the end, by step (Smith 2017; CyclicLR)."""

    def __init__(self, peak: Share) -> None:
        self.peak = peak

    def __call__(self, fraction: float) -> float:
        return fraction / self.peak if fraction < self.peak else (1 - fraction) / (1 - self.peak)


class Cyclic(Triangular):
    """`Triangular` as PyTorch's CyclicLR has it, which cycles SGD's momentum against the rate: from `max_momentum` to
    `base_momentum` at the peak and back, whatever the optimizer was given.
    """

    def __init__(self, peak: Share, base_momentum: Share = 0.8, max_momentum: Share = 0.9) -> None:
        super().__init__(peak)
        self.base_momentum, self.max_momentum = base_momentum, max_momentum

    def momentum(self, fraction: float) -> float:
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self(fraction)


class CosineByEpoch:
    """(1 + cos(π·(e + first)/(E + first))) / 2 all through epoch e = 0 … E−1 of `epochs` (Loshchilov & Hutter 2017).

    `first` is the number of the first epoch: 0, or 1 as DKL counts.
    """

    def __init__(self, epochs: Count, first: AnyCount = 0) -> None:
        self.epochs, self.first = epochs, first

    def __call__(self, fraction: float) -> float:
        return (1 + cos(pi * (epoch_of(fraction, self.epochs) + self.first) / (self.epochs + self.first))) / 2


class OneCycleByEpoch:
    """PyTorch's OneCycleLR(total_steps=epochs), stepped once an epoch: from 1/div over 1 to 1/(div·final_div), and the
    momentum of SGD against it: from `max_momentum` to `base_momentum` at the top and back, whatever it was given.

    The top is in epoch warmup·E − 1 and the bottom in the last, E − 1; cosine between.
    """

    def __init__(
        self,
        epochs: Count,
        warmup: Share = 0.3,
        div: Positive = 25.0,
        final_div: Positive = 1e4,
        base_momentum: Share = 0.85,
        max_momentum: Share = 0.95,
    ) -> None:
        self.epochs, self.top = epochs, warmup * epochs - 1
        self.low, self.final = 1 / div, 1 / (div * final_div)
        self.base_momentum, self.max_momentum = base_momentum, max_momentum

    def __call__(self, fraction: float) -> float:
        return self._cycle(fraction, self.low, 1.0, self.final)

    def momentum(self, fraction: float) -> float:
        return self._cycle(fraction, self.max_momentum, self.base_momentum, self.max_momentum)

    def _cycle(self, fraction: float, first: float, top: float, last: float) -> float:
        epoch = epoch_of(fraction, self.epochs)
        if epoch <= self.top:
            return _cosine(first, top, epoch / self.top if self.top else 1.0)
        return _cosine(top, last, (epoch - self.top) / (self.epochs - 1 - self.top))


class ByEpoch:
    """Another schedule's value at (e + first)/E, all through epoch e = 0 … E−1 of `epochs`."""

    def __init__(self, schedule: Schedule, epochs: Count, first: AnyCount = 0) -> None:
        self.schedule, self.epochs, self.first = schedule, epochs, first

    def __call__(self, fraction: float) -> float:
        return self.schedule((epoch_of(fraction, self.epochs) + self.first) / self.epochs)


class ExponentialByEpoch:
    """gamma^e all through epoch e = 0 … E−1 of `epochs`."""

    def __init__(self, epochs: Count, gamma: NotNegative) -> None:
        self.epochs, self.gamma = epochs, gamma

    def __call__(self, fraction: float) -> float:
        return self.gamma ** epoch_of(fraction, self.epochs)


def epoch_of(fraction: float, epochs: int) -> int:
    """The epoch, from 0, in which `fraction` of the training is done."""
    return int(epochs * (fraction + ROUNDING))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2
