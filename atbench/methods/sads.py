"""Single-step adversarial training with dropout that fades out."""

from __future__ import annotations

from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import BelowOne, SomeShare
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.models.dropout import ScheduledDropout


class Sads(Method):
    """SADS (Vivek & Babu 2020, CVPR, arXiv 2004.08628): CE(f(x'), y), x' by FGSM, with dropout behind each activation.

    The probability falls linearly, P(t) = P_d · max(0, 1 − t/(r_d·T)) at step t of T, so that the trained network has
    none: single-step training overfits to its own masked gradients early on, which dropout delays. Channels are dropped
    behind convolutions and values behind linear layers, in networks with blocks too. The attack is in eval mode, so
    that dropout is off in it; `attack.bn=train` has it on, with masks of its own. Cost: 5 forward passes a batch.

    Unverified: everything. No code of the authors is known, and their text was not at hand. From memory: the schedule,
    P_d and r_d, (0.8, 0.5) on MNIST, (0.8, 0.75) on Fashion-MNIST, (0.5, 0.5) on CIFAR-10. A choice: that the attack
    has no dropout, as none of the attacks of their SAT-Rx code, which are in eval mode. Activations are found by their
    types: one that is a function call is not seen, and a network without any is refused.
    No AutoAttack figure is known.

    Args:
        dropout: P_d, the probability at the start.
        decay: r_d, the share of training after which it is 0.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, dropout: BelowOne = 0.5, decay: SomeShare = 0.5
    ) -> None:
        super().__init__(model, attack)
        self.dropout, self.decay = dropout, decay
        self.inserted = ScheduledDropout(model)
        if not self.inserted.places:
            why = "the network has no activation modules, behind which dropout would stand"
            raise ConfigError("model", type(model).__name__, why, "use a network of conf/model")

    @property
    def probability(self) -> float:
        """P at this step."""
        return self.dropout * max(0.0, 1 - self.clock.fraction / self.decay)

    def perturb(self, batch: Batch) -> Batch:
        with self.inserted.active(self.probability, self.rng("attack dropout")):
            return super().perturb(batch)

    def loss(self, batch: Batch) -> Loss:
        with self.inserted.active(self.probability, self.rng("dropout")):
            logits = self.model(batch.x_adv)
        return Loss(self.risk(logits, batch.y).mean(), {}, logits)

    def epoch_figures(self) -> dict[str, float]:
        return {"dropout": self.probability}

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 3
