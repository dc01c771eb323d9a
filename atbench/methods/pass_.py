"""PASS: adversarial training towards the network's own predictions on unlabelled images."""

from __future__ import annotations

from torch import nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.unlabelled import PoolMethod


class Pass(PoolMethod):
    """PASS (Zhai et al. 2019, arXiv 1906.00555): CE(f(x'), y) on labelled images + λ · CE(f(u'), ŷ) on unlabelled ones.

    ŷ = argmax f(u), by the network as it is at this step. Inner: PGD on the cross-entropy to y or to ŷ, in two attacks,
    one a part, so that each part has batch statistics of its own, in train mode as all else; from x + N(0, (ε/4)²)
    clipped to ±ε/2 (`attack.start=clipped_gaussian`). Outer: two forwards, each term a mean over its own images.
    Cost: (2k + 3) forward passes a batch, and one more of its unlabelled images.

    Paper and code: RuntianZ/adversarial-robustness-unlabeled (utils.py: pass_train, model.py: AttackPGD) attacks in
    normalised space with one number for all channels: its images leave the box of pixels and move by up to 12/255. Here
    ε and the box are those of pixels. There the labelled images' adversarial forward comes before the unlabelled ones'
    attack, which matters to running statistics alone. Its 42.48 % under PGD-7 is by that same attack.
    The transductive experiment, whose pool is the test set, is left out.
    Known weaknesses: ŷ is the network's own mistake where it is wrong; no AutoAttack figure is known.

    Args:
        weight: λ.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, weight: NotNegative = 0.1) -> None:
        super().__init__(model, attack)
        self.weight = weight

    def perturb(self, batch: Batch) -> Batch:
        if (extra := batch.extra) is None:
            return super().perturb(batch)
        predicted = self.probabilities(extra.x).argmax(dim=1)
        labelled = super().perturb(batch)
        objective = Objective(self.model, cross_entropy, predicted)
        return labelled.with_adv(pool_adv=self.run_attack(objective, extra.x, stream="pool"), pool_y=predicted)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        labelled = self.risk(logits, batch.y).mean()
        if "pool_adv" not in batch.aux:
            return Loss(labelled, {}, logits)
        unlabelled = self.risk(self.model(batch.aux["pool_adv"]), batch.aux["pool_y"]).mean()
        terms = {"labelled": labelled.detach(), "unlabelled": unlabelled.detach()}
        return Loss(labelled + self.weight * unlabelled, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 3 + self.share
