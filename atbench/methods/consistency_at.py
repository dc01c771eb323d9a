"""Adversarial training with consistency of two augmented views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import NotNegative, Positive, Share
from atbench.data import Augment, Batch, TrainData
from atbench.data.augment import Chain
from atbench.methods.base import Loss, Method, Round
from atbench.methods.divergences import jensen_shannon


class ConsistencyAt(Method):
    """Consistency-AT (Tack et al. 2022, AAAI, arXiv 2103.04623): mean over v of CE(f(x'_v), y) + λ · JS(x'_1, x'_2).

    x_1 and x_2 are two augmentations of one image, drawn independently. JS = mean_i ½ · Σ_v KL(p_v ‖ m), p_v =
    softmax(f(x'_v) / T), m = ½ (p_1 + p_2): attacked, two views are to be mistaken for the same thing. The gradient
    flows through both. From the share `begin` of training on views are augmented further, behind crops and flips (the
    authors' autoaug_sche: AutoAugment and Cutout from half of training on).
    Inner: cross-entropy PGD from a uniform start in eval mode, one search of the 2B views. Outer: one forward of them.
    Cost: (4k + 6) forward passes of B images a batch.

    Source: alinlab/consistency-adversarial (training/adv_train/adv_train_consistency.py, training/__init__.py), whose
    attack is advertorch's, and whose guard 1e-8 on m logarithms make needless. Its consistency on top of TRADES and
    MART is left out.
    Known weaknesses: twice the cost of PGD-AT. Without any augmentation, as on digits, views differ in the start of
    their attacks alone. Measured by others, ResNet-18, AutoAttack: 48.87 ± 0.14 % at the last of 200 epochs, where
    PGD-AT has 40.71 %.

    Args:
        weight: λ.
        temperature: T.
        augment: further augmentations of either view, behind the run's own.
        begin: share of training from which they are used.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 1.0,
        temperature: Positive = 0.5,
        augment: Sequence[Augment] = (),
        begin: Share = 0.5,
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.temperature, self.further, self.begin = weight, temperature, Chain(augment), begin

    def setup(self, data: TrainData) -> None:
        data.set_views([None])

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        if self.clock.fraction >= self.begin:
            x, other = (self.further(each, self.rng(f"view {v}"))[0] for v, each in enumerate((batch.x, *batch.views)))
            batch = replace(batch, x=x, views=(other,))
        yield Round(batch)

    def perturb(self, batch: Batch) -> Batch:
        pairs = enumerate((batch.x, *batch.views))
        # Starts are drawn view by view, so that they are those of the joint batch in any number of processes.
        start = torch.cat([self.attack.begin(each, self.attack.eps, self.rng(f"start {v}")) for v, each in pairs])
        objective = Objective(self.model, self.attack_risk, torch.cat([batch.y, batch.y]))
        x_adv, other = self.run_attack(objective, torch.cat([batch.x, *batch.views]), start=start).chunk(2)
        return batch.with_adv(x_adv, other=other)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(torch.cat([batch.x_adv, batch.aux["other"]]))
        ce = self.risk(logits, torch.cat([batch.y, batch.y])).mean()
        js = jensen_shannon(*(logits / self.temperature).chunk(2)).mean()
        return Loss(ce + self.weight * js, {"ce": ce.detach(), "js": js.detach()}, logits)

    def forward_cost(self, steps: int) -> float:
        return 4 * steps + 6
