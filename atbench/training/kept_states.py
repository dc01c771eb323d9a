"""States of model and optimizers that a method asked to remember (`Keep`) and may go back to (`Restore`, `Stop`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from atbench.training.param_groups import Group


class KeptStates:
    """States by name; they are part of the checkpoint."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.model, self.groups = model, groups
        self.states: dict[str, dict[str, Any]] = {}

    def keep(self, name: str) -> None:
        """Remember the current state."""
        optimizers = {group.name: group.state() for group in self.groups}
        self.states[name] = deepcopy({"model": self.model.state_dict(), "optimizer": optimizers})

    def restore(self, name: str, parts: Collection[str]) -> None:
        """Go back to a remembered state in `parts`: `model`, `optimizer`."""
        kept = self.states[name]
        if "model" in parts:
            self.model.load_state_dict(kept["model"])
        if "optimizer" in parts:
            for group in self.groups:
                group.load(deepcopy(kept["optimizer"][group.name]))
