"""PGD adversarial training."""

from __future__ import annotations

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.data import Batch
from atbench.methods.base import Loss, Method, accuracy


class PgdAt(Method):
    """PGD-AT (Madry et al. 2018, ICLR, arXiv 1706.06083, eq. 2.1): min_θ max_{‖δ‖_p ≤ ε} CE(f(x+δ), y).

    Inner: the configured attack on cross-entropy with the true labels (the paper: uniform start, k sign steps).
    Outer: CE(f(x_adv), y); there is no clean term. Cost: (2k + 3) forward passes a batch, (2k + 4) with a clean pass.

    Paper and code: the paper trains CIFAR-10 with 7 steps (from memory), MadryLab/cifar10_challenge configures 10; the
    code leaves BatchNorm in train mode while attacking (`attack.bn=train`), the default here is `eval` (Pang et al.
    2021).
    Known weakness: robust overfitting after the first decay of the learning rate (Rice et al. 2020).

    Args:
        clean_pass: a clean forward in train mode after each update, for the statistics of BatchNorm alone:
            locuslab/robust_overfitting makes one for its log.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, clean_pass: bool = False) -> None:
        super().__init__(model, attack)
        self.clean_pass = clean_pass

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {"accuracy": accuracy(logits, batch.y)})

    @torch.no_grad()
    def after_update(self, batch: Batch) -> None:
        if self.clean_pass:
            self.model(batch.x)

    def forward_cost(self, steps: int) -> float | None:
        return 2 * steps + 3 + self.clean_pass
