"""A few real steps of a training: their time, their operations and the memory that they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from atbench.data import Batch
from atbench.errors import Interrupted
from atbench.methods import Loss
from atbench.training import Trainer
from atbench.training.callbacks import Silent
from atbench.training.cost import Count
from atbench.training.stopwatch import wait_for

WARM_UP = {"cuda": 5, "cpu": 1}  # steps that may be slower than the others: allocating, choosing kernels, capturing
STEPS, SECONDS = 10, 10.0  # measured at most, but one at least


@dataclass
class StepClock(Silent):
    """Wall-clock times between whole steps of a trainer, whose callbacks and interrupt this is: it waits for the device
    after each, and ends the training after `most` of them or so many seconds.
    """

    device: torch.device
    most: int = STEPS
    seconds: float = SECONDS
    stamps: list[float] = field(default_factory=list)

    def stamp(self) -> None:
        """Note the time at which the device has done all that it was asked for."""
        wait_for(self.device)
        self.stamps.append(perf_counter())

    @property
    def warm_up(self) -> int:
        """Steps that do not count; none where a single one takes long, but on CUDA, where the first chooses kernels."""
        first = self.stamps[1] - self.stamps[0] if len(self.stamps) > 1 else 0.0
        slow = self.device.type == "cpu" and first > self.seconds
        return 0 if slow else min(WARM_UP[self.device.type], self.most - 1)

    @property
    def counted(self) -> int:
        return max(0, len(self.stamps) - 1 - self.warm_up)

    @property
    def elapsed(self) -> float:
        """Seconds that the counted steps took."""
        return self.stamps[-1] - self.stamps[self.warm_up]

    def advance(self, examples: int, attack_share: float) -> None:
        self.stamp()

    def __call__(self) -> int:
        over = self.counted and (len(self.stamps) > self.most or self.elapsed > self.seconds)
        return 75 if over else 0


def seconds_per_step(trainer: Trainer, clock: StepClock) -> float:
    """Train from where the trainer stands until the clock has seen enough steps. clock: the trainer's callbacks."""
    _fit(trainer, clock)
    return clock.elapsed / clock.counted


@dataclass(frozen=True)
class Counted:
    """What one step comes to for each of its images: operations, and bytes that the update keeps for its backward
    pass. fixed: bytes of weights, tables, gradients, the optimizers' state and averages.
    """

    operations: float
    kept: float
    fixed: int


def count_step(trainer: Trainer, clock: StepClock) -> Counted:
    """Run one step and count. clock: the trainer's callbacks."""
    clock.most = 1
    with Count() as count, _kept_by_update(trainer) as kept:
        _fit(trainer, clock)
    images = trainer.data.batch_size
    return Counted(count.total / images, max(kept) / images, fixed_bytes(trainer))


def _fit(trainer: Trainer, clock: StepClock) -> None:
    clock.stamps.clear()
    clock.stamp()
    try:
        trainer.fit()
    except Interrupted:
        return


@contextmanager
def _kept_by_update(trainer: Trainer) -> Iterator[list[int]]:
    """A block in which the bytes are noted that each loss keeps for its backward pass, beside weights and their
    casts.
    """
    method, found = trainer.method, [0]
    outer = method.loss
    weights = {parameter.shape for parameter in method.parameters()}

    def watched(batch: Batch) -> Loss:
        storages: dict[int, Tensor] = {}  # held until all are counted, so that no place is used twice

        def pack(tensor: Tensor) -> Tensor:
            if tensor.shape not in weights:
                storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = outer(batch)
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
        return loss

    method.loss = watched  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del method.loss  # the class has it


def fixed_bytes(trainer: Trainer) -> int:
    """Bytes that do not grow with the batch."""
    method = trainer.method
    held: list[Tensor] = [*method.parameters(), *method.buffers()]
    held += [parameter for parameter in method.parameters() if parameter.requires_grad]  # their gradients
    for group in trainer.groups:
        for state in group.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, Tensor)]
    for average in trainer.averages:
        held += average.values.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
