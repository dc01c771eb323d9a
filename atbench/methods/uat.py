"""Unsupervised adversarial training."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from atbench.attacks import GradientAttack, Objective, cross_entropy, kl_from
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.errors import refuse_unknown
from atbench.methods.base import Loss
from atbench.methods.stage import Stage
from atbench.methods.unlabelled import PseudoLabelled

SUPERVISED = ("adversarial", "clean")


class Uat(PseudoLabelled):
    """UAT (Alayrac, Uesato et al. 2019, NeurIPS, arXiv 1905.13725): a smoothness loss, which needs no labels.

    1/B [ Σ_labelled CE(f(x'), y) + fixed · Σ_pool CE(f(x'), ŷ) + online · Σ_all KL(sg p(x) ‖ p(x')) ].
    UAT-OT, online targets, has the last term (`fixed: 0`); UAT-FT, fixed targets, the middle one (`online: 0`); UAT++
    both. ŷ is the argmax of a standard classifier that a stage of pre-training trains on the labelled images, as in
    `Rst`; without the middle term there is none. sg: no gradient to the clean side, unlike TRADES.
    Inner, one x' for an image: up CE towards y or ŷ where that cross-entropy of x' is in the loss, else up
    KL(p(x) ‖ p(x')), whose gradient is zero at x, so that the start has to be random.
    With `supervised: clean` the first term is CE(f(x), y).
    Cost in forward passes a batch, pool rows included: 2k + 5 (OT), 2k + 3 (FT), 2k + 4 (++); before that the
    labeller's run (FT, ++).

    Source: no training code was published (google-deepmind/deepmind-research, unsupervised_adversarial_training, has an
    evaluation on the first 3,200 test images alone), and the formulas of the terms are from memory. How they are added
    up is that of dyoony/SRST_AWR (loss.py: UAT_FT_loss, UAT_PP_loss; not the authors'): labelled images are attacked
    too, all rows of a batch count alike, the KL is that of all rows, adversarial images are forwarded before clean
    ones. There pseudo-labels are those of the augmented image. Weights, rates and batch sizes of the paper are
    unverified.
    Known weaknesses: UAT-OT alone is minimal for a constant network, and leans on the labelled term; UAT-FT inherits
    the labeller's mistakes. Robust accuracy later measured by AutoAttack: 56.03 %; reported: 56.30 % (RobustBench, the
    authors' UAT++ network with 200,000 further images).

    Args:
        online: weight of the KL to the network's own predictions (OT).
        fixed: weight of the cross-entropy to pseudo-labels (FT).
        supervised: the labelled images' cross-entropy, `adversarial` or `clean`.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        online: NotNegative = 1.0,
        fixed: NotNegative = 1.0,
        supervised: str = "adversarial",
    ) -> None:
        super().__init__(model, attack)
        refuse_unknown("method.supervised", supervised, SUPERVISED, "choice")
        self.online, self.fixed, self.clean = online, fixed, supervised == "clean"

    def pretraining(self) -> dict[str, Stage]:
        return super().pretraining() if self.fixed else {}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        if self.fixed:
            super().load_pretrained(stages)

    def perturb(self, batch: Batch) -> Batch:
        merged = self.merge(batch)
        labelled = merged.index < self.train_size
        targets = merged.y
        if self.clean or not self.fixed:
            p = self.probabilities(merged.x)
            if not self.fixed:  # the record counts how many pool rows keep their prediction
                merged = replace(merged, y=torch.where(labelled, merged.y, p.argmax(dim=1)))
            towards_y = torch.where(labelled, not self.clean, self.fixed > 0)
            targets = torch.where(towards_y[:, None], F.one_hot(merged.y, p.shape[1]).to(p.dtype), p)
        # Up to the entropy of p, which is constant, cross-entropy to p is KL(p ‖ ·).
        objective = Objective(self.model, cross_entropy, targets)
        x_adv = self.run_attack(objective, merged.x, start=self.merged_start(batch))
        return merged.with_adv(x_adv, labelled=labelled)

    def loss(self, batch: Batch) -> Loss:
        y, labelled = batch.y, batch.aux["labelled"]
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, y)
        kl = torch.zeros_like(risk)
        if self.online or self.clean:
            with torch.set_grad_enabled(self.clean):
                clean = self.model(batch.x)
            risk = torch.where(labelled, self.risk(clean, y), risk) if self.clean else risk
            kl = kl_from(logits, clean.detach().softmax(dim=1))
        ce, kl = torch.where(labelled, risk, self.fixed * risk).mean(), kl.mean()
        return Loss(ce + self.online * kl, {"ce": ce.detach(), "kl": kl.detach()}, logits)

    def forward_cost(self, steps: int) -> float:
        own_predictions = 1 if self.clean or not self.fixed else 0
        clean = 3 if self.clean else 1 if self.online else 0
        return 2 * steps + 3 + own_predictions + clean
