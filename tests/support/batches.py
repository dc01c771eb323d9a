"""Batches of an epoch, and whether two of them are the same."""

from __future__ import annotations

import torch

from atbench.data import Batch, TrainData


def epoch_of(given: TrainData, epoch: int) -> list[Batch]:
    return [given.batch(epoch, step) for step in range(given.steps)]


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)
