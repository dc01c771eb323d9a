"""Adversarial training with a LASSO penalty on the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss
from atbench.methods.pgd_at import PgdAt


class L1PenaltyAt(PgdAt):
    """L1-penalised AT (Xing et al. 2021, AISTATS, arXiv 2008.06631): max_{‖δ‖ ≤ ε} CE(f(x+δ), y) + λ·Σ|W|.

    Inner: PGD-AT's. Outer: cross-entropy on the adversarial images plus λ times the sum of the absolute values of all
    weights with more than one dimension: no biases, no BatchNorm. Either its subgradient λ·sign(W) is part of the
    update, or (`proximal`) the optimizer steps on the cross-entropy alone and W ← sign(W)·max(|W| − rate·λ, 0) follows,
    which makes weights exactly zero. With momentum the second is no longer the proximal gradient method, but still
    shrinks by rate·λ a step, while a subgradient goes through the momentum and is worth 1/(1 − momentum) times as much.
    Cost: (2k + 3) forward passes a batch, as PGD-AT.

    Paper and code: the paper proves consistency for sparse linear regression and two-layer networks in the lazy regime,
    with squared loss; its settings for deep networks were not available to us, and no code was found. The penalty is
    that of locuslab/robust_overfitting (train_cifar.py, --l1), whose grid was 5e-6 to 5e-3 (from memory).
    Known weaknesses: Σ|W| grows with the network, 1e5 for 11 million weights of size 0.01, so that λ is found anew for
    each; on CIFAR-10 it does next to nothing against robust overfitting (Rice et al. 2020). No AutoAttack figure is
    known.

    Args:
        penalty: λ.
        proximal: soft threshold after the update instead of a subgradient in it.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, penalty: float = 1e-5, proximal: bool = False) -> None:
        super().__init__(model, attack)
        if penalty < 0:
            raise ConfigError("method.penalty", penalty, "must not be negative", "use 0 for none")
        self.penalty, self.proximal = penalty, proximal

    def weights(self) -> list[Tensor]:
        """What is penalised."""
        return [weight for weight in self.model.parameters() if weight.ndim > 1]

    def loss(self, batch: Batch) -> Loss:
        risk, terms = super().loss(batch)
        size = torch.stack([weight.abs().sum() for weight in self.weights()]).sum()
        terms = {"ce": risk.detach(), "l1": size.detach(), **terms}
        return Loss(risk if self.proximal else risk + self.penalty * size, terms)

    @torch.no_grad()
    def commit(self, batch: Batch) -> None:
        if self.proximal:
            length = self.clock.rates["model"] * self.penalty
            for weight in self.weights():
                weight.copy_(weight.sign() * (weight.abs() - length).clamp_min(0))
