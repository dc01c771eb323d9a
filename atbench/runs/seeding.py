"""Random generators seeded by a hash of the run's seed and of where they are used.

No long-lived generator exists in atbench. Every draw comes from a generator seeded by (seed, stream, time), so that a
resumed run draws what the undisturbed one would have drawn, and a change in the attack never shifts the data order.
Draws per example are rows of a joint draw over the whole batch (or data set): each process of a distributed run, and
each way to cut an evaluation into batches, sees the same numbers for the same example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(seed: int, *stream: int | str) -> int:
    """A 63-bit seed that depends on `seed` and on every part of `stream`, through BLAKE2b."""
    text = "/".join(str(part) for part in (seed, *stream))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, seed: int, *stream: int | str) -> torch.Generator:
    """A new generator on `device` for one stream."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *stream))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`, which a network's own draws come from.

    `torch.manual_seed` queues every call for devices that are not initialised: a memory leak, once an image.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@dataclass
class Draws:
    """Per-example random numbers for one batch of a training run.

    Each call draws for the joint batch of all processes and returns this process's rows, so that `world` processes
    together draw what one process would. Successive calls continue one generator: ask in a fixed order.
    """

    source: torch.Generator
    rank: int = 0
    world: int = 1

    def uniform(self, like: Tensor) -> Tensor:
        """U(-1, 1), shaped like `like`."""
        joint = like.new_empty(len(like) * self.world, *like.shape[1:]).uniform_(-1, 1, generator=self.source)
        return joint[self.rank * len(like) : (self.rank + 1) * len(like)]

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1), shaped like `like`."""
        joint = like.new_empty(len(like) * self.world, *like.shape[1:]).normal_(generator=self.source)
        return joint[self.rank * len(like) : (self.rank + 1) * len(like)]

    def scalar(self, low: float, high: float) -> float:
        """One number from U(low, high), the same on every process."""
        return float(torch.empty((), device=self.source.device).uniform_(low, high, generator=self.source))


class ExampleDraws:
    """Per-example random numbers for an evaluation: row i of the data set always gets the same ones, however it is
    batched.

    Numbers are drawn for fixed chunks of `CHUNK` consecutive examples and the wanted rows are picked out of them.
    """

    CHUNK = 64

    def __init__(self, seed: int, *stream: int | str, index: Tensor) -> None:
        self.seed, self.stream, self.index, self.calls = seed, stream, index, 0

    def at(self, *stream: int | str) -> ExampleDraws:
        """The same examples' numbers in a substream (of a restart, of a target)."""
        return ExampleDraws(self.seed, *self.stream, *stream, index=self.index)

    def take(self, rows: Tensor) -> ExampleDraws:
        """The numbers that the examples `rows` (a mask or positions) would get next, and only they."""
        draws = ExampleDraws(self.seed, *self.stream, index=self.index[rows.cpu()])
        draws.calls = self.calls
        return draws

    def _rows(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        out = torch.empty_like(like)
        chunks = torch.div(self.index, self.CHUNK, rounding_mode="floor")
        for chunk in chunks.unique().tolist():
            source = generator(like.device, self.seed, *self.stream, self.calls, chunk)
            block = draw(torch.empty((self.CHUNK, *like.shape[1:]), dtype=like.dtype, device=like.device), source)
            rows = (chunks == chunk).nonzero().squeeze(1)
            out[rows] = block[(self.index[rows] % self.CHUNK).to(like.device)]
        self.calls += 1
        return out

    def uniform(self, like: Tensor) -> Tensor:
        """U(-1, 1), shaped like `like`."""
        return self._rows(like, lambda block, source: block.uniform_(-1, 1, generator=source))

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1), shaped like `like`."""
        return self._rows(like, lambda block, source: block.normal_(generator=source))
