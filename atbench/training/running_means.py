"""The epoch's means of the loss and of its terms."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.training.distributed import World


class RunningMeans:
    """Weighted means, summed on the device in double and read once an epoch: no `.item()` in the loop."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add the terms of one round; nothing of a round of weight 0, whatever its values."""
        for name, value in terms.items() if weight else ():
            value = weight * value.detach().double()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0.0) + weight

    def means(self, world: World) -> dict[str, float]:
        """Weighted mean of every term over the rounds that have it, and over the processes."""
        if not self.totals:
            return {}
        names = sorted(self.totals)
        joint = world.sum(torch.stack([self.totals[name] / self.counts[name] for name in names])) / world.size
        return dict(zip(names, joint.tolist(), strict=True))

    def clear(self) -> None:
        """Begin an epoch."""
        self.totals, self.counts = {}, {}

    def state(self) -> dict[str, object]:
        """For a checkpoint in mid-epoch."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load(self, state: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        """Restore the state of a checkpoint."""
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}
        self.counts = {name: float(count) for name, count in state["counts"].items()}
