"""Adversarially robust distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Positive, Share
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.stage import Stage
from atbench.methods.teacher import Taught


class Ard(Taught):
    """ARD (Goldblum et al. 2020, AAAI, arXiv 1905.09747): α · T² · KL(p_T(x) ‖ p_S(x')) / d + (1 − α) · CE(z(x), y).

    p_T and p_S are the probabilities of a robust teacher, which is frozen, in eval mode and sees the clean image alone,
    and of the student, both of logits divided by the temperature T; d is `divisor`. Inner: PGD on the student's
    cross-entropy with the true labels, from a uniform start that is not clipped to the box, in train mode. Outer: x',
    then x in train mode; with α = 1 the clean pass is for the running statistics alone.
    Cost: (2k + 5) forward passes a batch with α = 1, (2k + 7) with less, one of them the teacher's.

    Source: goldblum/AdversariallyRobustDistillation (main.py), which divides the KL by the number of classes (PyTorch's
    mean over all elements): d is 10 on CIFAR-10 and would be 100 on CIFAR-100.
    Known weaknesses: the labels do not enter the outer loss with α = 1, so that what the teacher gets wrong is learnt.
    Later measured by AutoAttack on CIFAR-10 with ResNet-18 students: 48 to 49 % (others' tables, from memory).

    Args:
        stage_network, teacher, teacher_model, teacher_method: as in Taught.
        alpha: α.
        temperature: T.
        divisor: d.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        teacher: str | Sequence[str] = (),
        teacher_model: str | Sequence[str] = (),
        teacher_method: str = "trades",
        alpha: Share = 1.0,
        temperature: Positive = 30.0,
        divisor: Positive = 10.0,
    ) -> None:
        super().__init__(model, attack, stage_network, teacher, teacher_model, teacher_method)
        self.alpha, self.temperature, self.divisor = alpha, temperature, divisor

    def loss(self, batch: Batch) -> Loss:
        adversarial = self.model(batch.x_adv)
        with torch.set_grad_enabled(self.alpha < 1):
            clean = self.model(batch.x)
        distance = kl_divergence(self.taught(batch.x), adversarial, self.temperature).mean() / self.divisor
        total, terms = self.alpha * self.temperature**2 * distance, {"kl": distance.detach()}
        if self.alpha < 1:
            risk = self.risk(clean, batch.y).mean()
            total, terms["ce"] = total + (1 - self.alpha) * risk, risk.detach()
        return Loss(total, terms, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return self.least_cost(2 * steps + (7 if self.alpha < 1 else 5))
