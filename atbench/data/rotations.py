"""A data set with the images' turns as labels: a second label space that needs no further images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from atbench.data.dataset import Images, Source
from atbench.errors import ConfigError, refuse_unknown

LABELS = ("classes", "rotations")
TURNS = ("0°", "90°", "180°", "270°")


@dataclass(frozen=True)
class RotatedSource(Source):
    """`rotated(base)`: the held-out part is the four copies of what `base` holds out."""

    base: Source = field(kw_only=True)

    def split_indices(self) -> tuple[Tensor, Tensor]:
        held, kept = self.base.split_indices()
        count = len(self.train) // len(TURNS)
        held, kept = (torch.cat([rows + k * count for k in range(len(TURNS))]) for rows in (held, kept))
        return held, kept


def with_labels(source: Source, labels: str) -> Source:
    """The data set with the labels that `dataset.labels` names: its own `classes`, or `rotations`."""
    refuse_unknown("dataset.labels", labels, LABELS)
    return source if labels == "classes" else rotated(source)


def rotated(base: Source) -> Source:
    """Every image four times, turned counter-clockwise by k · 90°, with the label k (Gidaris et al. 2018, ICLR).

    Under an augmentation that mirrors, a quarter turn to the left and one to the right are alike: train without it.
    Raises ConfigError for images that are not square, or that are decoded when they are loaded.
    """
    if base.shape[1] != base.shape[2]:
        why = "a quarter turn does not fit: images must be square"
        raise ConfigError("dataset.labels", "rotations", why, "use another data set")
    return RotatedSource(
        name=f"{base.name} rotated",
        train=_copies(base.train),
        test=lambda: _copies(base.test()),
        classes=TURNS,
        mean=base.mean,
        std=base.std,
        validation=len(TURNS) * base.validation,
        base=base,
    )


def _copies(images: Images) -> Images:
    if not isinstance(images.x, Tensor):
        why, fix = "the data set's images are decoded when they are loaded", "use one whose images are kept"
        raise ConfigError("dataset.labels", "rotations", why, fix)
    x = torch.cat([images.x.rot90(k, (2, 3)) for k in range(len(TURNS))])
    return Images(x, torch.arange(len(TURNS)).repeat_interleave(len(images)))
