"""When `last.pt` is written before training ends."""

from __future__ import annotations

import time

from atbench.methods.base import Method
from atbench.training.distributed import World
from atbench.training.recipe import Recipe

#: Bytes of tables that are written after every epoch. Saving takes 2 CPU seconds a GB (docs/bench.md): 0.2 s of these,
#: and 2.4 s of two float images for each of CIFAR-10.
LARGE = 10**8


class SaveTimes:
    """After `steps`, or `minutes` since the last time, and after every epoch where that costs little.

    What a method remembers of its examples are buffers, beside which those of networks are small. Where they are
    `LARGE` the end of an epoch is a step like any other. Of the first epoch it is not: a run that has rows of metrics
    and no checkpoint is refused as one that lost it.
    """

    def __init__(self, method: Method, recipe: Recipe, world: World) -> None:
        self.clock, self.recipe, self.world = method.clock, recipe, world
        self.large = sum(buffer.nbytes for buffer in method.buffers()) > LARGE
        self.saved = time.monotonic()

    def between_steps(self) -> bool:
        """Whether it is time, where the clock stands: the same on all processes, which gather a sharded network."""
        clock, steps = self.clock, self.recipe.save_steps
        if steps is not None and (clock.epoch * clock.steps + clock.step) % steps == 0:
            return True
        if self.world.size > 1 and clock.step % 10:
            return False
        return bool(self.world.agree(int(time.monotonic() - self.saved > 60 * self.recipe.save_minutes)))

    def between_epochs(self) -> bool:
        """Whether it is time, where the clock stands at the beginning of an epoch that follows another."""
        return not self.large or self.clock.epoch == 1 or self.between_steps()

    def note(self) -> None:
        """Note that it was written now."""
        self.saved = time.monotonic()
