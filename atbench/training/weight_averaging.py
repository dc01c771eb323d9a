"""Averages of the weights (EMA, SWA, FAWA): validated, selected and evaluated in place of the live weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.config.ranges import BelowOne, NotNegative, SomeShare
from atbench.errors import ConfigError
from atbench.methods.base import Clock

#: Passes the epoch's clean images through the network once more, in train mode, without gradient or update.
CleanPass = Callable[[], None]
#: Accuracy of the worst class of the held-out part under the PGD that selects.
WorstClass = Callable[[nn.Module], float]
ROUNDING = 1e-9  # warmup · all batches may be inexact in binary


class Average(ABC):
    """An average of a model's parameters, with buffers of its own where it needs them."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.updates = torch.zeros((), dtype=torch.long)

    @property
    def ready(self) -> bool:
        """Whether there is an average yet."""
        return bool(self.values)

    @property
    def statistics(self) -> list[Tensor]:
        """Values that are averages of BatchNorm's statistics, which differ between processes within a batch."""
        return []

    @abstractmethod
    def after_update(self, model: nn.Module, clock: Clock) -> None:
        """Called after every update."""

    @abstractmethod
    def after_epoch(self, model: nn.Module, clock: Clock, clean_pass: CleanPass, worst_class: WorstClass) -> None:
        """Called at the end of an epoch, before validation."""

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Context in which `model` holds the average; its own values are restored afterwards, bit for bit."""
        current = {name: value.detach().clone() for name, value in model.state_dict().items()}
        load(model, self.values)
        try:
            yield
        finally:
            load(model, current)


def load(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of the same names, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


class Ema(Average):
    """Exponential moving average: w̄ ← τ·w̄ + (1 − τ)·w after every update, over parameters.

    With n batches done and W = `warmup` · all batches: τ = 0 (a copy) while n < W, then min(decay, (1 + d)/(10 + d)),
    d = n − W. Buffers are the live model's. Source: imrahulr/adversarial_robustness_pytorch (Gowal et al. 2020), decay
    0.995; without warm-up its average begins at the initial weights, here at those after the first update.

    Args:
        decay: τ; or, instead of it,
        horizon: how far the average looks back, 1/(1 − τ) updates, as a share of all: fits trainings of any length.
        ramp: whether τ rises as above; without it it is `decay` from the second update on.
        buffers: whether BatchNorm's statistics are averaged as the parameters are (FastAT_Benchmark).
    """

    def __init__(
        self,
        decay: BelowOne | None = None,
        warmup: BelowOne = 0.025,
        horizon: SomeShare | None = None,
        ramp: bool = True,
        buffers: bool = False,
    ) -> None:
        super().__init__()
        if (decay is None) == (horizon is None):
            why = "the decay and the horizon are two ways to say the same"
            raise ConfigError(
                "plus.ema", f"decay={decay}, horizon={horizon}", why, "give one of them, null for the other"
            )
        self.decay, self.warmup, self.horizon, self.ramp, self.buffers = decay, warmup, horizon, ramp, buffers

    def after_update(self, model: nn.Module, clock: Clock) -> None:
        live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if self.buffers:
            live |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        batches = clock.epochs * clock.steps
        since = clock.epoch * clock.steps + clock.step + 1 - self.warmup * batches
        if not self.values or since < -ROUNDING:
            self.values = {name: value.clone() for name, value in live.items()}
            return
        decay = (self.decay or 0.0) if self.horizon is None else max(0.0, 1 - 1 / (self.horizon * batches))
        rate = min(decay, (1 + since) / (10 + since)) if self.ramp else decay
        torch._foreach_lerp_([self.values[name] for name in live], list(live.values()), 1 - rate)

    @property
    def statistics(self) -> list[Tensor]:
        return [value for name, value in self.values.items() if name.rpartition(".")[2].startswith("running_")]

    def after_epoch(self, model: nn.Module, clock: Clock, clean_pass: CleanPass, worst_class: WorstClass) -> None:
        """Nothing: the buffers are the live model's, or averaged already."""


class Swa(Average):
    """Stochastic weight averaging: the plain mean of the weights at the end of every epoch from `start` of training on.

    BatchNorm statistics are those of the mean itself, re-estimated on one pass over the epoch's clean images, as
    everybody does: Izmailov et al. 2018; for AT, Chen et al. 2021, from epoch 55 of 200
    (VITA-Group/Alleviate-Robust-Overfitting, `bn_update`). The live network's are those of the images it trains on.
    """

    def __init__(self, start: BelowOne) -> None:
        super().__init__()
        self.start = start

    def after_update(self, model: nn.Module, clock: Clock) -> None:
        """Nothing: SWA looks at the end of epochs."""

    def after_epoch(self, model: nn.Module, clock: Clock, clean_pass: CleanPass, worst_class: WorstClass) -> None:
        if (clock.epoch + 1) / clock.epochs <= self.start:
            return
        self.updates += 1
        count = int(self.updates)
        for name, value in model.named_parameters():
            if count == 1:
                self.values[name] = value.detach().clone()
            else:
                self.values[name].lerp_(value.detach(), 1 / count)
        self._reestimate(model, clean_pass)

    def _reestimate(self, model: nn.Module, clean_pass: CleanPass) -> None:
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
        if not norms:
            return
        with self.applied(model):
            momenta = {norm: norm.momentum for norm in norms.values()}
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # cumulative mean
            clean_pass()
            for norm, momentum in momenta.items():
                norm.momentum = momentum
            state = model.state_dict()
            buffers = [f"{name}.{kind}" for name, norm in norms.items() for kind, _ in norm.named_buffers()]
            self.values.update({name: state[name].detach().clone() for name in buffers})


class Fawa(Average):
    """Fairness aware weight averaging (Wei et al. 2023, CVPR, arXiv 2303.14460): w̄ ← τ·w̄ + (1 − τ)·w at the end of an
    epoch whose worst class holds, over parameters and BatchNorm statistics; at the end of any other w̄ stays as it is.

    It holds if its accuracy on the held-out part under the PGD that selects, of the live model, is at least
    `threshold`; the first such epoch is copied. Source: PKU-ML/CFA (train.py, utils.py), decay 0.88. Cost: one more
    search of the held-out part an epoch.
    """

    def __init__(self, decay: BelowOne, threshold: NotNegative) -> None:
        super().__init__()
        self.decay, self.threshold = decay, threshold

    def after_update(self, model: nn.Module, clock: Clock) -> None:
        """Nothing: FAWA looks at the end of epochs."""

    def after_epoch(self, model: nn.Module, clock: Clock, clean_pass: CleanPass, worst_class: WorstClass) -> None:
        if worst_class(model) < self.threshold:
            return
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if name in self.values:
                self.values[name].lerp_(value, 1 - self.decay)
            else:
                self.values[name] = value.clone()
