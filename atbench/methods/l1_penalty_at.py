"""Adversarial training with a LASSO penalty on the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.pgd_at import PgdAt


class L1PenaltyAt(PgdAt):
    """L1-penalised AT (Xing et al. 2021, AISTATS, arXiv 2008.06631): max_{‖δ‖ ≤ ε} CE(f(x+δ), y) + λ·Σ|W|.

    Inner: PGD-AT's. Outer: cross-entropy on the adversarial images plus λ times the sum of the absolute values of all
    weights with more than one dimension: no biases, no BatchNorm. Either its subgradient λ·sign(W) is part of the
    update, or (`proximal`) the optimizer steps on the cross-entropy alone and W ← sign(W)·max(|W| − rate·λ, 0) follows,
    which makes weights exactly zero. With momentum the second is no longer the proximal gradient method, but still
    shrinks by rate·λ a step, while a subgradient goes through the momentum and is worth 1/(1 − momentum) times as much.
    Cost: (2k + 3) forward passes a batch, (2k + 4) with a clean pass, as PGD-AT.

    Paper and code: the paper proves consistency for sparse linear regression and two-layer networks in the lazy regime,
    with squared loss; its settings for deep networks were not available to us, and no code was found. The penalty is
    that of locuslab/robust_overfitting (train_cifar.py, --l1), whose runs are kept there (experiments/cifar10_l1: 5e-7
    to 5e-4). It stands beside that code's weight decay, of 5e-4 on every parameter, and a clean forward in train mode
    follows each update (`clean_pass`).
    Known weaknesses: Σ|W| grows with the network, 1e5 for 11 million weights of size 0.01, so that λ is found anew for
    each. Rice et al.'s last epochs keep 41.4 % (λ = 5e-7), 46.5 % (5e-6), 44.3 % (5e-5) and 27.7 % (5e-4) of CIFAR-10
    under PGD-10: less than their early stopping. No AutoAttack figure is known.

    Args:
        penalty: λ.
        proximal: soft threshold after the update instead of a subgradient in it.
        clean_pass: a clean forward after each update, for the statistics of BatchNorm alone.
    """

    reads_weights = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        penalty: NotNegative = 1e-5,
        proximal: bool = False,
        clean_pass: bool = False,
    ) -> None:
        super().__init__(model, attack, clean_pass)
        self.penalty, self.proximal = penalty, proximal

    def weights(self) -> list[Tensor]:
        """What is penalised."""
        return [weight for weight in self.model.parameters() if weight.ndim > 1]

    def loss(self, batch: Batch) -> Loss:
        risk, terms, logits = super().loss(batch)
        size = torch.stack([weight.abs().sum() for weight in self.weights()]).sum()
        terms = {"ce": risk.detach(), "l1": size.detach(), **terms}
        return Loss(risk if self.proximal else risk + self.penalty * size, terms, logits)

    @torch.no_grad()
    def after_update(self, batch: Batch) -> None:
        if self.proximal:
            length = self.clock.rates["model"] * self.penalty
            for weight in self.weights():
                weight.copy_(weight.sign() * (weight.abs() - length).clamp_min(0))
        super().after_update(batch)
