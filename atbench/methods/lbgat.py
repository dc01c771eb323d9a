"""Learnable boundary guided adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss, accuracy
from atbench.methods.divergences import kl_divergence
from atbench.methods.trades import Trades


class Lbgat(Trades):
    """LBGAT (Cui et al. 2021, ICCV, arXiv 2011.11164): mean_{B×K} (z(x') − t(x))² + CE(t(x), y) + β · KL(p(x) ‖ p(x')).

    t are the logits of a teacher that learns from clean images at the same time, p = softmax(z). The network has no
    loss of the labels: it learns them from the teacher alone. The squared distance is a mean over classes, and trains
    the teacher as well: boundaries that an attacked network cannot follow are unlearnt. Inner: TRADES' attack, with
    β = 0 too; the teacher takes no part in it. Outer: everything in train mode, the teacher in the group `teacher`.
    Cost: (2k + 8) forward passes a batch with β = 0, (2k + 10) with more, three of them the teacher's.

    Source: dvlab-research/LBGAT (lbgat.py, train_lbgat_cifar100.py). The network forwards the clean batch with β = 0
    too, so that its running statistics see both kinds of images.
    Known weaknesses: with β = 0 clean accuracy is kept at the cost of robustness. Clean accuracy and robust accuracy by
    AutoAttack at ε = 0.031, WRN-34-10: CIFAR-10, β = 0: 88.22, 52.86 (RobustBench); CIFAR-100, β = 0: 70.25, 27.16,
    β = 6: 60.64, 29.33 (README).

    Args:
        network: makes the teacher.
        teacher: changes to the run's `model` node; a node of its own if it names a `_target_`.
        beta: β.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        network: Callable[..., nn.Module],
        teacher: Mapping[str, Any],
        beta: NotNegative = 0.0,
    ) -> None:
        super().__init__(model, attack, beta)
        self.teacher = network(teacher)

    def groups(self) -> dict[str, nn.Module]:
        return {"model": self.model, "teacher": self.teacher}

    def loss(self, batch: Batch) -> Loss:
        adversarial, taught = self.model(batch.x_adv), self.teacher(batch.x)
        distance, risk = F.mse_loss(adversarial, taught), self.risk(taught, batch.y).mean()
        total = distance + risk
        terms = {"mse": distance.detach(), "ce": risk.detach(), "teacher": accuracy(taught, batch.y)}
        if self.beta:
            boundary = kl_divergence(self.model(batch.x), adversarial).mean()
            total, terms["kl"] = total + self.beta * boundary, boundary.detach()
        else:
            with torch.no_grad():
                self.model(batch.x)  # for the running statistics alone, as the authors' forward with β = 0 is
        return Loss(total, terms, adversarial)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (10 if self.beta else 8)
