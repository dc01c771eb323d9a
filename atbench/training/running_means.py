"""The epoch's means of the loss and of its terms."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.training.distributed import World


class RunningMeans:
    """Weighted means, summed on the device in double and read once an epoch: no `.item()` in the loop.

    rounds: (weight w, w · terms) of what is not summed up yet.
    """

    def __init__(self) -> None:
        self.rounds: list[tuple[float, dict[str, Tensor]]] = []
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def _sum(self) -> None:
        """Sum up; nothing of a round of weight 0, whatever its values."""
        for weight, terms in self.rounds:
            for name, value in terms.items() if weight else ():
                self.totals[name] = self.totals[name] + value if name in self.totals else value
                self.counts[name] = self.counts.get(name, 0.0) + weight
        self.rounds.clear()

    def means(self, world: World) -> dict[str, float]:
        """Weighted mean of every term over the rounds that have it, and over the processes."""
        self._sum()
        if not self.totals:
            return {}
        names = sorted(self.totals)
        joint = world.sum(torch.stack([self.totals[name] / self.counts[name] for name in names])) / world.size
        return dict(zip(names, joint.tolist(), strict=True))

    def clear(self) -> None:
        """Begin an epoch."""
        self.rounds, self.totals, self.counts = [], {}, {}

    def state(self) -> dict[str, object]:
        """For a checkpoint in mid-epoch."""
        self._sum()
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load(self, state: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        """Restore the state of a checkpoint."""
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}
        self.counts = {name: float(count) for name, count in state["counts"].items()}
