"""Batches that go through the networks in parts, one after the other, where the memory does not hold them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError, EnvironmentFault, out_of_memory
from atbench.methods.base import Method, Round
from atbench.training.recipe import Recipe
from atbench.training.train_step import TrainStep


class MicroBatches:
    """Trains on a batch in parts of equal size (gradient accumulation): one update, the one of the whole batch.

    A part is to the method what the batch of one of several processes is: it sees such a clock, and so draws its rows
    of the joint random numbers. `after_update` sees the whole batch. What differs is what a network does with a batch
    as such: BatchNorm normalises by the part, and dropout draws its masks part by part.

    When memory runs out, the batch is begun again in smaller parts, for the rest of the run, if the result is the same;
    else an EnvironmentFault names the settings that make room.

    Args:
        recipe: `micro_batch` is how many rows of a process's batch, unlabelled ones included, go through at once.
        say: takes a line for the user.
    """

    def __init__(
        self, method: Method, data: TrainData, step: TrainStep, recipe: Recipe, say: Callable[[str], None]
    ) -> None:
        self.method, self.step, self.precision, self.say = method, step, recipe.precision, say
        self.rows, unlabelled = (size // data.shard.world for size in (data.batch_size, data.extra_size))
        sizes = (self.rows - unlabelled, unlabelled)
        #: Into how many equal parts the labelled and the unlabelled rows can be split.
        self.counts = [count for count in range(1, sizes[0] + 1) if not any(size % count for size in sizes)]
        self.count = 1 if recipe.micro_batch is None else self._count(recipe.micro_batch)

    def _count(self, rows: int) -> int:
        """How many parts have `rows` rows. Raises ConfigError."""
        possible = {self.rows // count: count for count in self.counts}
        if rows not in possible:
            why = f"a batch of {self.rows} does not split into equal parts of that size"
            raise ConfigError("train.micro_batch", rows, why, f"use one of {', '.join(map(str, possible))}")
        if possible[rows] > 1 and not self.method.takes_micro_batches:
            raise ConfigError("train.micro_batch", rows, self._compares(), "leave it out")
        return possible[rows]

    def _compares(self) -> str:
        return f"{type(self.method).__name__} needs all images of a batch at once"

    def _normalises_by_batch(self) -> bool:
        return any(isinstance(module, _BatchNorm) and module.training for module in self.method.modules())

    def warnings(self) -> list[str]:
        """What the configured size changes besides memory."""
        if self.count == 1 or not self._normalises_by_batch():
            return []
        size = self.rows // self.count
        what = f"BatchNorm normalises by {size} images in place of {self.rows}"
        return [f"train.micro_batch: {what}, and its running statistics move {self.count} times as often"]

    def train_on(self, batch: Batch) -> None:
        """Use a loaded batch as often as the method says."""
        while True:
            try:
                return self._use(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                smaller = self._smaller(error)
            # After the block: the traceback keeps activations.
            self._make_room(smaller)

    def _use(self, batch: Batch) -> None:
        clock, world = self.method.clock, self.step.world
        self.step.changed = False
        try:
            rounds = [self._rounds(part, place) for place, part in enumerate(batch.split(self.count))]
            for clock.round, parts in enumerate(zip(*rounds, strict=True)):
                self.step(*parts)
                if world.device.type == "cpu":  # on CUDA before anything is saved: reading it waits for the device
                    self.step.check_finite()
        finally:
            clock.round, clock.rank, clock.world = 0, world.rank, world.size

    def _rounds(self, part: Batch, place: int) -> Iterator[Round]:
        """The rounds of the part at this place."""
        clock, world, rounds = self.method.clock, self.step.world, self.method.inner_updates(part)
        while True:
            clock.rank, clock.world = world.rank * self.count + place, world.size * self.count
            if (round := next(rounds, None)) is None:
                return
            yield round

    def _smaller(self, error: BaseException) -> int:
        """The next larger number of parts. Raises EnvironmentFault where smaller parts would not do the same."""
        more = next((count for count in self.counts if count >= 2 * self.count), None)
        if more is None or not self.method.takes_micro_batches:
            raise self._fault(self._compares() if more else "a batch cannot be split any further") from error
        size = self.rows // more
        if self.step.changed:
            raise self._fault("an update of this batch has begun", size) from error
        if self.step.world.size > 1:
            raise self._fault("several processes do not change the size of a batch on their own", size) from error
        if self.step.awp:
            raise self._fault("under plus=awp a batch is not begun again", size) from error
        if self._normalises_by_batch():
            raise self._fault("smaller parts of a batch would change what BatchNorm normalises by", size) from error
        return more

    def _fault(self, why: str, size: int | None = None) -> EnvironmentFault:
        ways = [f"train.micro_batch={size} (gradients are accumulated)"] if size else []
        ways += ["a smaller train.batch_size"]
        if "fp32" in self.precision and not self.method.second_order:
            ways += ["train.precision.attack=bf16 with train.precision.update=bf16"]
        return EnvironmentFault("memory", "exhausted", why, f"use {', or '.join(ways)}")

    def _make_room(self, count: int) -> None:
        """Free what the attempt has left, and set smaller parts."""
        for group in self.step.groups:
            group.optimizer.zero_grad()
        for attack in self.method.attacks():
            if attack.replay is not None:
                attack.replay.clear()
        device = self.step.world.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.count, size, before = count, self.rows // count, _random_state(device)

        def check() -> None:
            self.step.before_update = None
            if any(not torch.equal(*pair) for pair in zip(before, _random_state(device), strict=True)):
                raise self._fault("the network draws random numbers (dropout), others in smaller parts", size)
            self.say(f"out of memory: batches now go through in parts of {size} images, with the same result")

        self.step.before_update = check


def _random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of the global generators, which networks draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
