"""Training batches: from tensors on the device, or decoded one batch ahead where the images do not fit.

The rows of a batch are a function of (seed, epoch, step), so that a checkpoint stores no position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data.augment import Augment, Chain, View
from atbench.data.batch import Batch
from atbench.data.concat import ConcatImages
from atbench.data.dataset import Images, Source, stratified, stratified_subset
from atbench.data.mixup import Mix
from atbench.data.transfer import to_device
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws, generator


@dataclass(frozen=True)
class Shard:
    """This process's part of a joint batch: process `rank` of `world`, which have equally many rows."""

    rank: int = 0
    world: int = 1


class PermutationSampler:
    """An endless sequence of row indices: permutations of 0..n−1, each a function of (seed, its number)."""

    def __init__(self, n: int, seed: int, name: str) -> None:
        self.n, self.seed, self.name = n, seed, name

    def rows(self, start: int, count: int) -> Tensor:
        """Elements start .. start+count−1 of the sequence, on the CPU."""
        parts = []
        for number in range(start // self.n, (start + count - 1) // self.n + 1):
            order = torch.randperm(self.n, generator=generator("cpu", self.seed, "order", self.name, number))
            parts.append(order[max(0, start - number * self.n) : start + count - number * self.n])
        return torch.cat(parts)


class MixedSampler:
    """An endless sequence of batches from two sources, rows 0..first−1 and first..first+second−1.

    A `share` of each batch, rounded down, comes from the second; each source has a `PermutationSampler` of its own, and
    the rows of a batch are shuffled.
    """

    def __init__(self, first: int, second: int, share: float, seed: int, name: str) -> None:
        self.first = PermutationSampler(first, seed, name)
        self.second = PermutationSampler(second, seed, f"{name}/second")
        self.share, self.seed, self.name = share, seed, name

    def rows(self, start: int, count: int) -> Tensor:
        """Row indices of the batch of `count` that begins at `start`, a multiple of `count`, on the CPU."""
        number, more = start // count, floor_share(self.share, count)
        rows = self.first.rows(number * (count - more), count - more)
        if more:
            rows = torch.cat([rows, self.second.rows(number * more, more) + self.first.n])
        # Shuffled as a joint batch, so that each process, and each method's subset, has rows of both sources.
        return rows[torch.randperm(count, generator=generator("cpu", self.seed, "blend", self.name, number))]


def floor_share(share: float, count: int) -> int:
    """⌊share · count⌋; 1e-9 makes up for shares, such as 0.7, that are inexact in binary."""
    return int(share * count + 1e-9)


class Stream:
    """A further sequence of batches beside the main one, with an order and an augmentation of its own: a function of
    (seed, name, epoch, step).
    """

    def __init__(self, data: TrainData, images: Images, name: str, size: int) -> None:
        self.data, self.images, self.name, self.size = data, images, name, size
        self.order = data.order(images, name)

    def batch(self, epoch: int, step: int) -> Batch:
        """The `size` examples (joint over processes) of one step; this process's rows of them."""
        start = (epoch * self.data.steps + step) * self.size
        batch = self.data.load(self.images, self.order.rows(start, self.size), epoch, step, self.name)
        if self.images.streamed:
            self.images.prefetch(self.data.own(self.order.rows(start + self.size, self.size)))
        return batch


class TrainData:
    """The data of a training run: the train part of the source, the held-out validation part, and extra data, if any.

    Args:
        source: the data set. Its test split is not touched here.
        batch_size: joint batch over all processes; a multiple of `shard.world`.
        augment: None for none; `mix`: the same, and labels of batches and streams become shares (B, K) with it. Images
            of an unlabelled pool have no label to mix.
        labelled: share of the train part that keeps its labels; the others' labels are dropped and they become the
            pool.
        pool: further images in place of hidden ones. With label −1 they are the pool; with labels they are rows of
            `train`, `generated` of them behind the data set's own, and no method can tell them apart.
        extra: share of every batch drawn from either, rounded down.

    An epoch is ⌊N / batch_size⌋ full batches, N counting the data set's labelled and pool images but no further ones,
    so that every method takes the same number of steps. Without a pool it is a fresh permutation of them; else the data
    set's images and the others are walked through in permutations that go on from epoch to epoch. Recipes with
    generated data count their epochs so too: imrahulr/adversarial_robustness_pytorch and wzekai99/DM-Improves-AT
    (core/data/semisup.py) give their sampler ⌈50,000 / B⌉ batches. Raises ConfigError where the sizes do not fit.
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
        shard: Shard | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.batch_size, self.seed, self.augment = source, batch_size, seed, augment
        self.mix, self.views = mix, tuple[Augment, ...]()
        self.shard, self.device, self.dtype = shard or Shard(), torch.device(device), dtype
        held, kept = source.split_indices()
        whole = source.train.take(kept)
        self.steps = len(whole) // batch_size
        self.extra_size, self.extra = floor_share(extra, batch_size), extra
        self._check(len(whole), labelled, pool)
        if labelled is not None:
            with_label, without = stratified(whole.y, (round(labelled * len(whole)),), seed=1)
            hidden = whole.take(without)
            whole, pool = whole.take(with_label), Images(hidden.x, torch.full_like(hidden.y, -1))
        self.validation = source.train.take(held).to(self.device)
        self.train, self.generated = whole.to(self.device), 0
        self.pool = pool.to(self.device) if pool is not None else None
        if self.pool is not None and int(self.pool.y.min()) >= 0:
            self._join(self.pool)
        if self.batch_size % self.shard.world or self.extra_size % self.shard.world:
            why = f"it must split evenly over {self.shard.world} processes, its unlabelled part too"
            raise ConfigError("train.batch_size", self.batch_size, why, f"use a multiple of {2 * self.shard.world}")
        self._labelled = self.order(self.train, "labelled")
        self._pool = (
            Stream(self, self.pool, "pool", self.extra_size) if self.pool is not None and self.extra_size else None
        )
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def _check(self, size: int, labelled: float | None, pool: Images | None) -> None:
        if self.steps < 1:
            why = f"there are {size} images to train on"
            raise ConfigError("train.batch_size", self.batch_size, why, f"use at most {size}")
        if labelled is not None and pool is not None:
            why = "train.extra_data.path names a pool already"
            raise ConfigError("train.extra_data.labelled", labelled, why, "set one to null")
        if self.extra_size and labelled is None and pool is None:
            fix = "set train.extra_data.labelled below 1, or train.extra_data.path"
            raise ConfigError("train.extra_data.fraction", self.extra, "there are no images to draw", fix)
        if self.extra_size >= self.batch_size:
            why = "leaves no image of the data set in a batch"
            raise ConfigError("train.extra_data.fraction", self.extra, why, "use less than 1")

    def _join(self, more: Images) -> None:
        """Append extra images that have labels to `train`, if batches have any of them."""
        self.pool = None
        if not self.extra_size:
            return
        if not (isinstance(self.train.x, Tensor) and isinstance(more.x, Tensor)):
            why, fix = "the data set's images are decoded when they are loaded", "raise dataset.source.memory"
            raise ConfigError("train.extra_data.labels", True, why, f"{fix}, so that they are kept")
        images = ConcatImages(self.train.x, more.x)
        self.train, self.generated = Images(images, torch.cat([self.train.y, more.y])), len(more)
        self.extra_size = 0

    def order(self, images: Images, name: str) -> PermutationSampler | MixedSampler:
        """The sampler of `images`: mixed, in the configured share, if some of them are generated."""
        if images is self.train and self.generated:
            return MixedSampler(len(images) - self.generated, self.generated, self.extra, self.seed, name)
        return PermutationSampler(len(images), self.seed, name)

    def stream(self, name: str, size: int) -> Stream:
        """A further independent stream over the labelled train images, `size` of them a step over all processes."""
        if size % self.shard.world:
            why = f"its stream of {size} images must split evenly over {self.shard.world} processes"
            raise ConfigError("train.batch_size", self.batch_size, why, "use a multiple of their number")
        return Stream(self, self.train, name, size)

    def set_views(self, before: Sequence[Augment | None]) -> None:
        """From now on `batch.views` holds a further image of each example for each of these augmentations, which comes
        before the run's own (None: that alone). Random numbers are each one's own, and `batch.x` is what it was.
        """
        if self.mix is not None and before:
            mix, why = type(self.mix).__name__, "the method compares images of one example"
            raise ConfigError("dataset.augment", mix, why, f"leave {mix} out")
        self.views = tuple(Chain([each for each in (first, self.augment) if each is not None]) for first in before)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of one step: this process's rows, augmented, with the unlabelled part in `extra`."""
        extra = self._pool.batch(epoch, step) if self._pool else None
        batch = self.load(self.train, self._rows(epoch, step), epoch, step, "main", extra, self.views)
        if self.train.streamed:
            self.train.prefetch(self.own(self._rows(*divmod(epoch * self.steps + step + 1, self.steps))))
        return batch

    def _rows(self, epoch: int, step: int) -> Tensor:
        size = self.batch_size - self.extra_size
        if self.pool is None and not self.generated:
            return self._permutation(epoch)[step * size : (step + 1) * size]
        return self._labelled.rows((epoch * self.steps + step) * size, size)

    def own(self, joint: Tensor) -> Tensor:
        """This process's part of the joint rows."""
        rows = len(joint) // self.shard.world
        return joint[self.shard.rank * rows : (self.shard.rank + 1) * rows]

    def _permutation(self, epoch: int) -> Tensor:
        """The permutation of an epoch; that of the last epoch asked for is cached."""
        if self._order[0] != epoch:
            order = torch.randperm(len(self.train), generator=generator("cpu", self.seed, "order", epoch))
            self._order = (epoch, order)
        return self._order[1]

    def load(
        self,
        images: Images,
        joint: Tensor,
        epoch: int,
        step: int,
        name: str,
        extra: Batch | None = None,
        views: Sequence[Augment] = (),
    ) -> Batch:
        """This process's part of the joint rows as a Batch."""
        rows = self.own(joint)
        index = to_device(rows, self.device)
        # Pictures are decoded by the host, which knows the rows already: from the device it would wait for them.
        pixels = images.floats(rows if images.streamed else index, self.dtype)
        x, view = self._augmented(pixels, "augment", name, epoch, step)
        further = [each(pixels, self._draws("view", name, epoch, step, place))[0] for place, each in enumerate(views)]
        y = images.y[index]
        if self.mix is not None and images is not self.pool:
            order = torch.randperm(len(joint), generator=generator("cpu", self.seed, "partner", name, epoch, step))
            rows = self.own(joint[order])
            others = to_device(rows, self.device)
            partners = images.floats(rows if images.streamed else others, self.dtype)
            other, _ = self._augmented(partners, "partner", name, epoch, step)
            ours, theirs = F.one_hot(torch.stack([y, images.y[others]]), len(self.source.classes)).to(self.dtype)
            # A share and a box of the whole batch are numbers of the host's.
            draws = Draws(generator("cpu", self.seed, "mix", name, epoch, step), self.shard.rank, self.shard.world)
            x, y = self.mix(x, ours, other, theirs, draws)
        return Batch(x, y, index, view, extra, tuple(further))

    def _augmented(self, pixels: Tensor, *place: int | str) -> tuple[Tensor, View | None]:
        """The images augmented with the random numbers of `place`."""
        return (pixels, None) if self.augment is None else self.augment(pixels, self._draws(*place))

    def _draws(self, *place: int | str) -> Draws:
        return Draws(generator(self.device, self.seed, *place), self.shard.rank, self.shard.world)

    def fit_sample(self, count: int) -> Images:
        """`count` fixed examples of the data set's labelled train part, for measuring how far training fits them."""
        rows = stratified_subset(self.train.y[: len(self.train) - self.generated], count)
        return self.train.take(rows.to(self.device)).to(self.device)
