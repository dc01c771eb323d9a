"""Images to augment, and the random numbers for it."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.runs.seeding import Draws, generator


def images(n: int = 40, channels: int = 2, height: int = 6, width: int = 8) -> Tensor:
    return (
        torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    )


def draws(place: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(generator("cpu", 0, "augment", place), rank, world)
