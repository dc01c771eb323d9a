"""A network whose weights are an exponential moving average of another's."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from atbench.models import Frozen


class WeightAverage(Frozen):
    """θ̄ ← α·θ̄ + (1 − α)·θ at every `follow`, of parameters and of BatchNorm's running statistics; θ̄ begins as θ.

    It is state of a method that trains with it. The average that training never looks at is `plus.ema`, whose running
    statistics are the live model's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(deepcopy(model))

    @torch.no_grad()
    def follow(self, model: nn.Module, decay: float) -> None:
        """One step towards `model` with α = `decay`; 0 makes a copy of it."""
        averages, values = self.network.state_dict(), model.state_dict()
        for name, average in averages.items():
            if average.is_floating_point():
                average.lerp_(values[name], 1 - decay)
            else:
                average.copy_(values[name])  # a count of batches
