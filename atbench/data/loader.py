"""Batches from tensors on the device, or decoded a batch ahead where they do not fit.

Position in the data = f(seed, epoch, step): nothing to save, nothing to lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.data.augment import Augment, View
from atbench.data.batch import Batch
from atbench.data.mixing import Mix, shares
from atbench.data.splits import Images, Source, stratified
from atbench.errors import ConfigError
from atbench.rng import Draws, generator


@dataclass(frozen=True)
class Share:
    """Which rows of a joint batch this process works on: process `rank` of `world`, equal rows each."""

    rank: int = 0
    world: int = 1


class Endless:
    """An endless sequence of example positions: one permutation of 0..n−1 after the other, each a function of (seed,
    pass).
    """

    def __init__(self, n: int, seed: int, name: str) -> None:
        self.n, self.seed, self.name = n, seed, name

    def rows(self, start: int, count: int) -> Tensor:
        """Positions start .. start+count−1 of the sequence, on the CPU."""
        parts = []
        for turn in range(start // self.n, (start + count - 1) // self.n + 1):
            order = torch.randperm(self.n, generator=generator("cpu", self.seed, "order", self.name, turn))
            parts.append(order[max(0, start - turn * self.n) : start + count - turn * self.n])
        return torch.cat(parts)


class Stream:
    """A source of batches that runs beside the main one: position = f(seed, name, epoch, step), its own order and
    augmentation.
    """

    def __init__(self, data: TrainData, images: Images, name: str, size: int) -> None:
        self.data, self.images, self.name, self.size = data, images, name, size
        self.order = Endless(len(images), data.seed, name)

    def batch(self, epoch: int, step: int) -> Batch:
        """The `size` examples (joint over processes) of one step; this process's rows of them."""
        start = (epoch * self.data.steps + step) * self.size
        batch = self.data.load(self.images, self.order.rows(start, self.size), epoch, step, self.name)
        if self.images.streamed:
            self.images.expect(self.data.own(self.order.rows(start + self.size, self.size)))
        return batch


class TrainData:
    """What training may see: the train part of the source, the held-out validation part, and an unlabelled pool if
    asked for.

    Args:
        source: the data set. Its test split is not touched here.
        batch_size: joint batch over all processes; a multiple of `share.world`.
        augment: None for none; `mix`: the same, and labels of batches and streams become shares (B, K) with it. Pool
            images have no label to mix.
        labelled: share of the train part that keeps its labels; the others' labels are dropped and they become the
            pool.
        pool: further images, label −1, in place of hidden ones; they do not make an epoch longer.
        extra: share of every batch drawn from the pool.

    An epoch is ⌊N / batch_size⌋ full batches of a fresh permutation, N counting labelled and pool images, so that every
    method takes the same number of steps. Raises ConfigError where the sizes do not fit.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        mix: Mix | None = None,
        labelled: float | None = None,
        pool: Images | None = None,
        extra: float = 0.0,
        share: Share | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.batch_size, self.seed, self.augment = source, batch_size, seed, augment
        self.mix = mix
        self.share, self.device, self.dtype = share or Share(), torch.device(device), dtype
        held, kept = source.parts()
        whole = source.train.take(kept)
        self.validation = source.train.take(held).to(self.device)
        self.pool = pool.to(self.device) if pool is not None else None
        if labelled is not None and pool is not None:
            raise ConfigError(
                "train.pool.labelled", labelled, "train.pool.path names a pool already", "set one to null"
            )
        if labelled is not None:
            with_label, without = stratified(whole.y, (round(labelled * len(whole)),), seed=1)
            hidden = whole.take(without)
            self.pool = Images(hidden.x, torch.full_like(hidden.y, -1)).to(self.device)
            whole_size, whole = len(whole), whole.take(with_label)
        else:
            whole_size = len(whole)
        self.train = whole.to(self.device)
        self.steps = whole_size // batch_size
        self.extra_size = round(extra * batch_size)
        self._check(whole_size, extra)
        self._labelled = Endless(len(self.train), seed, "labelled")
        self._pool = (
            Stream(self, self.pool, "pool", self.extra_size) if self.pool is not None and self.extra_size else None
        )
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def _check(self, size: int, extra: float) -> None:
        if self.steps < 1:
            why = f"there are {size} images to train on"
            raise ConfigError("train.batch_size", self.batch_size, why, f"use at most {size}")
        if self.batch_size % self.share.world or self.extra_size % self.share.world:
            why = f"it must split evenly over {self.share.world} processes, its unlabelled part too"
            raise ConfigError("train.batch_size", self.batch_size, why, f"use a multiple of {2 * self.share.world}")
        if self.extra_size and self.pool is None:
            raise ConfigError(
                "train.pool.fraction",
                extra,
                "there is no unlabelled pool",
                "set train.pool.labelled below 1, or train.pool.path",
            )
        if self.extra_size >= self.batch_size:
            raise ConfigError("train.pool.fraction", extra, "leaves no labelled image in a batch", "use less than 1")

    def stream(self, name: str, size: int) -> Stream:
        """A further independent stream over the labelled train images, `size` of them a step over all processes."""
        if size % self.share.world:
            why = f"its stream of {size} images must split evenly over {self.share.world} processes"
            raise ConfigError("train.batch_size", self.batch_size, why, "use a multiple of their number")
        return Stream(self, self.train, name, size)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of one step: this process's rows, augmented, with its unlabelled part."""
        extra = self._pool.batch(epoch, step) if self._pool else None
        batch = self.load(self.train, self._rows(epoch, step), epoch, step, "main", extra)
        if self.train.streamed:
            self.train.expect(self.own(self._rows(*divmod(epoch * self.steps + step + 1, self.steps))))
        return batch

    def _rows(self, epoch: int, step: int) -> Tensor:
        """The joint rows of one step's labelled part."""
        size = self.batch_size - self.extra_size
        if self.pool is None:
            return self._permutation(epoch)[step * size : (step + 1) * size]
        return self._labelled.rows((epoch * self.steps + step) * size, size)

    def own(self, joint: Tensor) -> Tensor:
        """This process's part of the joint rows."""
        rows = len(joint) // self.share.world
        return joint[self.share.rank * rows : (self.share.rank + 1) * rows]

    def _permutation(self, epoch: int) -> Tensor:
        """The order of an epoch, kept until another epoch is asked for."""
        if self._order[0] != epoch:
            order = torch.randperm(len(self.train), generator=generator("cpu", self.seed, "order", epoch))
            self._order = (epoch, order)
        return self._order[1]

    def load(
        self, images: Images, joint: Tensor, epoch: int, step: int, name: str, extra: Batch | None = None
    ) -> Batch:
        """This process's part of the joint rows as a Batch."""
        index = self.own(joint).to(self.device)
        x, view = self._augmented(images, index, "augment", name, epoch, step)
        y = images.y[index]
        if self.mix is not None and images is not self.pool:
            order = torch.randperm(len(joint), generator=generator("cpu", self.seed, "partner", name, epoch, step))
            others = self.own(joint[order]).to(self.device)
            other, _ = self._augmented(images, others, "partner", name, epoch, step)
            ours, theirs = (shares(labels, len(self.source.classes), self.dtype) for labels in (y, images.y[others]))
            x, y = self.mix(x, ours, other, theirs, self._draws("mix", name, epoch, step))
        return Batch(x, y, index, view, extra)

    def _augmented(self, images: Images, index: Tensor, *place: int | str) -> tuple[Tensor, View | None]:
        """The images `index` as floats, augmented by the draws of a place."""
        x = images.floats(index, self.dtype)
        return (x, None) if self.augment is None else self.augment(x, self._draws(*place))

    def _draws(self, *place: int | str) -> Draws:
        return Draws(generator(self.device, self.seed, *place), self.share.rank, self.share.world)

    def fit_sample(self, count: int) -> Images:
        """`count` fixed examples of the labelled train part, for measuring how far training fits what it sees."""
        rows = torch.randperm(len(self.train), generator=generator("cpu", 0, "fit"))[:count]
        return self.train.take(rows.to(self.device)).to(self.device)

    def sha256(self) -> str:
        """Checksum of everything that may be trained on, before it is split."""
        return self.source.train.sha256()
