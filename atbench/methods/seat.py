"""SEAT: PGD-AT whose weights are averaged along training."""

from __future__ import annotations

from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import BelowOne
from atbench.data import Batch
from atbench.methods.pgd_at import PgdAt
from atbench.methods.weight_average import WeightAverage


class Seat(PgdAt):
    """SEAT (Wang & Wang 2022, ICLR): min_θ CE(f_θ(x'), y), evaluated at θ̄ ← α_t·θ̄ + (1 − α_t)·θ.

    t = 0, 1, … counts updates and α_t = min(α, (t + 1) / (t + 10)), so that the initial weights are soon forgotten.
    BatchNorm's running statistics are averaged like weights. Inner and outer are PGD-AT's, in eval mode; nothing that
    is trained looks at the average, and θ is PGD-AT's to the bit. The authors' rate falls in straight lines, so that
    the weights that are averaged are not too much alike (experiment=paper/seat).
    Cost: (2k + 3) forward passes a batch.

    Source: whj363636/Self-Ensemble-Adversarial-Training (seat.py). Its forward of the clean batch through θ̄, for the
    log, is left out.
    Known weaknesses: its attack class ignores the number of steps that it is given, so that the columns "PGD-20" and
    "PGD-100" of its tables are ten steps; AutoAttack about 51.3 % (ResNet-18, from memory).

    Args:
        decay: α.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, decay: BelowOne = 0.999) -> None:
        super().__init__(model, attack)
        self.average = WeightAverage(model)
        self.decay = decay

    def after_update(self, batch: Batch) -> None:
        t = self.clock.epoch * self.clock.steps + self.clock.step
        self.average.follow(self.model, min(self.decay, (t + 1) / (t + 10)))

    def evaluated(self) -> nn.Module:
        return self.average.network
