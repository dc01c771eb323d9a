"""Averages of the weights along training: they are validated, selected, evaluated; training never sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.methods.base import Clock, Method
from atbench.ranges import BelowOne, Count

#: replay(n): make the passes of n training batches again, attacks and losses, without an update or a commit.
Replay = Callable[[int], None]


class Average(ABC):
    """A second set of parameters, with the buffers that belong to it."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.updates = torch.zeros((), dtype=torch.long)

    @property
    def ready(self) -> bool:
        """Whether there is an average yet."""
        return bool(self.values)

    @abstractmethod
    def after_update(self, model: nn.Module, clock: Clock) -> None:
        """Called after every update."""

    @abstractmethod
    def after_epoch(self, method: Method, replay: Replay) -> None:
        """Called at the end of an epoch, before validation."""

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """A block in which `model` holds the average; its own values come back afterwards, bit for bit."""
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
    """Exponential moving average: w̄ ← τ_t·w̄ + (1 − τ_t)·w after every update, over parameters.

    During the share `warmup` of training τ_t = 0 (a copy); then τ_t = min(decay, (1 + d)/(10 + d)), d updates later.
    Buffers are the live model's. Source: imrahulr/adversarial_robustness_pytorch (Gowal et al. 2020), decay 0.995.
    """

    def __init__(self, decay: BelowOne, warmup: BelowOne = 0.025) -> None:
        super().__init__()
        self.decay, self.warmup = decay, warmup

    def after_update(self, model: nn.Module, clock: Clock) -> None:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if not self.values or clock.fraction < self.warmup:
            self.values = {name: value.clone() for name, value in parameters.items()}
            return
        self.updates += 1
        count = int(self.updates)
        rate = min(self.decay, (1 + count) / (10 + count))
        old, new = [self.values[name] for name in parameters], list(parameters.values())
        torch._foreach_lerp_(old, new, 1 - rate)

    def after_epoch(self, method: Method, replay: Replay) -> None:
        """Nothing: the buffers are the live model's already."""


class Swa(Average):
    """Stochastic weight averaging: the plain mean of the weights at the end of every epoch from `start` of training on.

    BatchNorm statistics are re-estimated for the mean: `batches` training batches are attacked and passed again as the
    method does, and their statistics averaged. Source: Izmailov et al. 2018; for AT, Chen et al. 2021, from epoch 55
    of 200, re-estimating on one pass over clean images (VITA-Group/Alleviate-Robust-Overfitting).
    """

    def __init__(self, start: BelowOne, batches: Count = 20) -> None:
        super().__init__()
        self.start, self.batches = start, batches

    def after_update(self, model: nn.Module, clock: Clock) -> None:
        """Nothing: SWA looks at the end of epochs."""

    def after_epoch(self, method: Method, replay: Replay) -> None:
        clock = method.clock
        if (clock.epoch + 1) / clock.epochs <= self.start:
            return
        self.updates += 1
        count = int(self.updates)
        for name, value in method.model.named_parameters():
            if count == 1:
                self.values[name] = value.detach().clone()
            else:
                self.values[name].lerp_(value.detach(), 1 / count)
        self._reestimate(method.model, replay)

    def _reestimate(self, model: nn.Module, replay: Replay) -> None:
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
        if not norms:
            return
        with self.applied(model):
            momenta = {norm: norm.momentum for norm in norms.values()}
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # cumulative mean
            replay(self.batches)
            for norm, momentum in momenta.items():
                norm.momentum = momentum
            state = model.state_dict()
            buffers = [f"{name}.{kind}" for name, norm in norms.items() for kind, _ in norm.named_buffers()]
            self.values.update({name: state[name].detach().clone() for name in buffers})
