"""ReBAT: PGD-AT that stays near an average of its weights once the learning rate has dropped."""

from __future__ import annotations

from torch import nn

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import BelowOne, Count, NotNegative, Positive, Share
from atbench.data import Batch
from atbench.methods.base import FixedSteps, Loss
from atbench.methods.pgd_at import PgdAt
from atbench.methods.weight_average import WeightAverage


class Rebat(PgdAt):
    """ReBAT (Wang et al. 2023, NeurIPS, arXiv 2310.19360): CE(f(x'), y) + β · KL(p_θ̄(x') ‖ p(x')).

    p = softmax(f), θ̄ ← α·θ̄ + (1 − α)·θ after every update from the share `start` of training on, BatchNorm's running
    statistics likewise; before it θ̄ is θ and β is 0: PGD-AT to the bit. θ̄ is what is evaluated. The paper's reading of
    robust overfitting is that a small learning rate lets the network win against the attack and memorise; so that its
    rate drops by 1.5 instead of 10 (`recipe=rice train.schedule.gamma=2/3`, as in experiment=paper/rebat), and the last
    term keeps the network from leaving its average. Inner: PGD on cross-entropy in train mode, in ReBAT++ a stronger
    one from the share `strong_start` on. Outer: θ̄ in eval mode, no gradient flows into it.
    Cost: (2k + 3) forward passes a batch, one more from `start` on, and one more with the clean pass.

    Source: PKU-ML/ReBAT (train_cifar_wa.py, utils.py). Left out: one more forward of the perturbed images, with which
    the code chooses among restarts, of which it makes one; train mode of θ̄ in its first epoch of averaging.
    Known weaknesses: the number called PGD-20 in its tables is of ten steps. Robust accuracy later measured by
    AutoAttack: 50.72 % (PreActResNet-18), 54.78 % (WRN-34-10), ReBAT++ 51.49 % (PreActResNet-18; others' tables).

    Args:
        beta: β from `start` on.
        decay: α.
        start: share of training at which averaging begins.
        strong_eps, strong_steps: the attack of ReBAT++; null: the run's own all along.
        strong_start: share of training at which it begins.
        clean_pass: a clean forward in train mode after each update, for BatchNorm's statistics alone, as in the code.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 1.0,
        decay: BelowOne = 0.999,
        start: Share = 105 / 200,
        strong_eps: Positive | None = None,
        strong_steps: Count | None = None,
        strong_start: Share = 100 / 200,
        clean_pass: bool = True,
    ) -> None:
        super().__init__(model, attack, clean_pass)
        self.average = WeightAverage(model)
        self.beta, self.decay, self.start = beta, decay, start
        self.strong_eps, self.strong_steps, self.strong_start = strong_eps, strong_steps, strong_start

    def perturb(self, batch: Batch) -> Batch:
        strong = self.clock.fraction >= self.strong_start
        eps, steps = (self.strong_eps, self.strong_steps) if strong else (None, None)
        objective = Objective(self.model, self.attack_risk, batch.y)
        batch = batch.with_adv(self.run_attack(objective, batch.x, eps=eps, steps=steps))
        return batch.with_adv(p=self.probabilities(batch.x_adv, self.average)) if self._pulled() else batch

    def loss(self, batch: Batch) -> Loss:
        if not self._pulled():
            return super().loss(batch)
        logits = self.model(batch.x_adv)
        risk, distance = self.risk(logits, batch.y).mean(), kl_from(logits, batch.aux["p"]).mean()
        return Loss(risk + self.beta * distance, {"ce": risk.detach(), "kl": distance.detach()}, logits)

    def _pulled(self) -> bool:
        """Whether the loss of this step has its second term."""
        return self.beta > 0 and self.clock.fraction >= self.start

    def after_update(self, batch: Batch) -> None:
        super().after_update(batch)
        self.average.follow(self.model, self.decay if self.clock.fraction >= self.start else 0.0)

    def evaluated(self) -> nn.Module:
        return self.average.network

    def fixed_steps(self) -> dict[str, FixedSteps]:
        own = super().fixed_steps()
        if "attack" not in own or (self.strong_eps, self.strong_steps) == (None, None):
            return own
        number, length, eps = own["attack"]
        return own | {"method.strong_steps": FixedSteps(self.strong_steps or number, length, self.strong_eps or eps)}

    def forward_cost(self, steps: int) -> float:
        if self.clock.fraction >= self.strong_start:
            steps = self.strong_steps or steps
        return 2 * steps + 3 + self.clean_pass + self._pulled()
