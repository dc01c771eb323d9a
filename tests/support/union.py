"""Radii and step sizes of three balls, and images to search in their union."""

from __future__ import annotations

from torch import Tensor, nn

from atbench.runs.seeding import Draws, generator
from tests.support import worlds

RADII = {"l1": 1.5, "l2": 0.4, "linf": 0.08}
SIZES = {"l1": 0.4, "l2": 0.12, "linf": 0.02}


def draws(rank: int = 0, world: int = 1) -> Draws:
    return Draws(generator("cpu", 0, "test"), rank, world)


def images(inset: float = 0.0) -> tuple[nn.Module, Tensor, Tensor]:
    given = worlds.data(worlds.source(inset=inset))
    batch = given.batch(0, 0)
    return worlds.cnn(), batch.x, batch.y
