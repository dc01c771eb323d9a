"""Networks that a method needs before its own training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from atbench.models import Frozen


@dataclass(frozen=True)
class Stage:
    """A network that a method needs before its own training: of a run that is trained first, or a finished one.

    method: the run's `method` node (at least `_target_`); None with `checkpoint`.
    epochs: share of this run's epochs.
    offset: added to this run's seed.
    overrides: what else differs from this run, as words of a command line: `model=wrn`, `dataset=cifar100`,
        `recipe=trades`, `model.members=1`.
    checkpoint: a finished run's folder, a checkpoint in it, or an export; with `overrides` a file of anybody's weights
        for the network that they describe. Nothing is trained.
    best: hand over the selected epoch instead of the last.
    live: hand the network over trainable and in train mode; otherwise it is `Frozen`.
    teaches: `clean` or `robust` accuracy, which is then measured first (`workflows/teachers.py`); None: neither.
    """

    method: dict[str, Any] | None = None
    epochs: float = 1.0
    offset: int = 0
    overrides: tuple[str, ...] = ()
    checkpoint: str | None = None
    best: bool = False
    live: bool = False
    teaches: str | None = None

    def handed_over(self, network: nn.Module) -> nn.Module:
        """A network of this stage in the mode in which a method gets it."""
        return network.requires_grad_(True).train() if self.live else Frozen(network)
