"""Splits of images and labels, data sets, and stratified selection of examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from atbench.data.concat import ConcatImages
from atbench.data.lazy_images import LazyImages
from atbench.errors import ConfigError, DataError


@dataclass(frozen=True)
class Images:
    """One split: `x` uint8 (N, C, H, W), `y` int64 (N,).

    x: a tensor, two of them (`ConcatImages`), or picture files whose rows are decoded on demand (`LazyImages`); `to`
        makes a tensor of those that fit into their memory limit.
    index: of a sample, int64 (N,) on the CPU: the position of each row in the split that it was taken from.
    """

    x: Tensor | LazyImages | ConcatImages
    y: Tensor
    index: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Images:
        return Images(self.x.to(device), self.y.to(device), index=self.index)

    def take(self, index: Tensor) -> Images:
        return Images(self.x.select(index) if isinstance(self.x, LazyImages) else self.x[index], self.y[index])

    def sample(self, n: int) -> Images:
        """`n` of them by `stratified_subset`, always the same ones; all, where there are no more."""
        if n >= len(self):
            return self
        rows = stratified_subset(self.y, n)
        taken = self.take(rows.to(self.y.device))
        return Images(taken.x, taken.y, index=self.indices(rows))

    def indices(self, rows: Tensor) -> Tensor:
        """The positions of `rows` (on the CPU) in the split that this is a sample of: random numbers are theirs."""
        return rows if self.index is None else self.index[rows]

    @property
    def streamed(self) -> bool:
        """Whether rows are decoded as they are asked for."""
        return isinstance(self.x, LazyImages)

    def prefetch(self, index: Tensor) -> None:
        """Begin to decode the rows that `floats` will be asked for next. No effect on tensors."""
        if isinstance(self.x, LazyImages):
            self.x.prefetch(index)

    def floats(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x[index].to(dtype).div_(255)

    def sha256(self) -> str:
        """Checksum of pixels, labels and their shape; of pictures their files' names and sizes in place of pixels."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        if isinstance(self.x, LazyImages):
            digest.update(repr(list(self.x.names())).encode())
        else:
            digest.update(self.x[:].cpu().numpy().tobytes())
        digest.update(self.y.cpu().numpy().tobytes())
        return digest.hexdigest()


class FloatImages(Images):
    """One split of which `x` is float (N, C, H, W) in [0, 1], on the 8-bit grid or not."""

    def floats(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x[index].to(dtype)


@dataclass(frozen=True)
class Source:
    """A data set as it comes from its makers: everything that may be trained on, and a test split behind a function.

    `test` is called by evaluation alone: training never holds a reference to test data. `mean` and `std` are the
    normalisation of [0, 1] pixels that networks apply inside.
    """

    name: str
    train: Images
    test: Callable[[], Images]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: int

    def __post_init__(self) -> None:
        check_dataset(self.name, self.train, len(self.classes))
        if not 0 <= self.validation < len(self.train):
            why = f"of {len(self.train)} examples; some have to be left to train on"
            raise ConfigError("dataset.source.validation", self.validation, why, "use a smaller number, from 0")

    def check_trainable(self) -> Images:
        """Check before training that the data set can be trained on, validated and evaluated.

        Returns the test split, which it reads for that. Raises ConfigError and DataError.
        """
        if self.validation == 0:
            why = "the best checkpoint is chosen on images that are held out"
            raise ConfigError("dataset.source.validation", 0, why, "hold some out")
        left = torch.bincount(self.train.y[self.split_indices()[1]], minlength=len(self.classes))
        if lacking := (left == 0).nonzero().flatten().tolist():
            why = f"leaves no example of class '{self.classes[lacking[0]]}' to train on"
            raise ConfigError("dataset.source.validation", self.validation, why, "hold out less")
        test = self.test()
        if len(test) == 0:
            raise DataError(self.name, "no test example", "there is nothing to evaluate on", "add some")
        check_dataset(self.name, test, len(self.classes), every=False)
        if (theirs := tuple(test.x.shape[1:])) != self.shape:
            raise DataError(self.name, f"test images {theirs}", f"the train images are {self.shape}", "make them alike")
        if isinstance(test.x, LazyImages):
            test.x.check_headers()
        return test

    def split_indices(self) -> tuple[Tensor, Tensor]:
        """Positions in `train` of what is held out and of what may be trained on: the same for every run."""
        held, kept = stratified(self.train.y, (self.validation,), seed=0)
        return held, kept

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.x.shape[1:]
        return int(channels), int(height), int(width)


def check_dataset(name: str, images: Images, classes: int, every: bool = True) -> None:
    """Raise DataError unless pixels are uint8 (N, C, H, W), labels int64 in [0, classes), and, if `every`, each class
    has an example.
    """
    x, y = images.x, images.y
    if x.dtype != torch.uint8 or x.ndim != 4:
        what = f"{x.dtype} {tuple(x.shape)}"
        raise DataError(name, what, "images must be uint8 of shape (N, C, H, W)", "convert them")
    if y.dtype != torch.int64 or len(y) != len(x):
        why = f"labels must be int64, one for each of {len(x)} images"
        raise DataError(name, f"{y.dtype} ({len(y)},)", why, "convert them")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        why = f"labels must lie in 0..{classes - 1}"
        raise DataError(name, f"label {low if low < 0 else high}", why, "check the label file")
    empty = (torch.bincount(y, minlength=classes) == 0).nonzero().flatten().tolist()
    if every and empty:
        raise DataError(name, f"class {empty[0]}", "has no example to train on", "drop the class or add examples")


def stratified(y: Tensor, sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """Disjoint index sets of the given sizes, each with every class in proportion, and the rest as a last set.

    Sizes are met exactly: each class gives its proportion rounded down, and what is missing comes from the classes with
    the largest remainders. Deterministic in (y, sizes, seed).
    """
    labels = y.cpu().numpy()
    rng = np.random.default_rng(seed)
    order = {k: rng.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)}
    taken = dict.fromkeys(order, 0)
    parts = []
    for size in sizes:
        exact = {k: size * len(rows) / len(labels) for k, rows in order.items()}
        count = {k: int(share) for k, share in exact.items()}
        for k in sorted(order, key=lambda k: count[k] - exact[k])[: size - sum(count.values())]:
            count[k] += 1
        parts.append(np.concatenate([rows[taken[k] : taken[k] + count[k]] for k, rows in order.items()]))
        taken = {k: taken[k] + count[k] for k in order}
    parts.append(np.concatenate([rows[taken[k] :] for k, rows in order.items()]))
    return [torch.from_numpy(np.sort(part)) for part in parts]


def stratified_subset(y: Tensor, n: int, seed: int = 0) -> Tensor:
    """Positions (n,) of a sample of the labels `y` (N,), ascending, on the CPU: every class in proportion, and of a
    class any of its examples, in whatever order `y` is. All positions where n ≥ N.

    The only way in which this program takes a part of a data set for a measurement: the first n of data that are sorted
    by class are of a few classes alone. Deterministic in (y, seed), and a smaller sample is a part of a larger one.
    Where n is less than the number of classes, which of them are left out is drawn.
    """
    labels = y.cpu().numpy()
    if n >= len(labels):
        return torch.arange(len(labels))
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    order = np.empty(len(labels))  # the share of the data at which an example comes in
    for k, offset in zip(classes, (rng.permutation(len(classes)) + 0.5) / len(classes), strict=True):
        rows = np.flatnonzero(labels == k)
        order[rng.permutation(rows)] = (np.arange(len(rows)) + offset) / len(rows)
    return torch.from_numpy(np.sort(np.argsort(order, kind="stable")[:n]))
