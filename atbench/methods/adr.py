"""ADR: labels are softened by what an average of the weights says, and the more the later."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import BelowOne, NotNegative, Positive, Share
from atbench.data import Batch
from atbench.errors import refuse_unknown
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.trades import Trades
from atbench.methods.weight_average import WeightAverage

BASES = ("pgd_at", "trades")


class Adr(Trades):
    """ADR (Wu et al. 2024, ICLR, arXiv 2305.12118): CE(f(x'), ỹ), ỹ = λ_i · q + (1 − λ_i) · onehot(y).

    q = softmax(f_θ̄(x) / τ), where θ̄ ← α·θ̄ + (1 − α)·θ after every update, BatchNorm's running statistics likewise;
    λ_i = clip(λ − (max_k q_k − q_y), 0, 1): the average is trusted less where it prefers another class to the label. τ
    falls from `temperature_high` to `temperature_low` and λ rises from `interpolation_low` to `interpolation_high`,
    along half a cosine each. θ̄ is in eval mode, no gradient flows into ỹ, and it is what is evaluated (the rows "+ WA"
    of the authors' tables).
    Inner: PGD on CE(f(x'), ỹ) in train mode, so that running statistics move with the attack. Outer: the same, and with
    the base `trades` CE(f(x), ỹ) + β · KL(f(x) ‖ f(x')), both images in one forward, with TRADES' attack.
    Cost: (2k + 4) forward passes a batch, (2k + 8) with the base `trades`.

    Source: yuyuwu5/ADR (src/adr.py, src/advTrainer.py). Its TRADES starts at x + 0.001·U[0, 1). Left out: its weight
    perturbation, which is AWP but for BatchNorm and biases, which it perturbs as well, for decay and momentum, which
    see the weights themselves, and for running statistics, which see the first pass; `plus=awp` is near.
    Known weakness: the authors select on the test images. Clean accuracy and robust accuracy by AutoAttack (README):
    ResNet-18 82.59, 50.86, with weight perturbation 83.26, 51.24; WRN-34-10 82.93, 54.13, with it 86.11, 55.22.

    Args:
        base: `pgd_at` or `trades` (`attack.start=gaussian`).
        beta: β of `trades`.
        decay: α.
        temperature_high, temperature_low: τ at the beginning and at the end.
        interpolation_low, interpolation_high: λ at the beginning and at the end.
        wa: evaluate θ̄; false: the live model.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        base: str = "pgd_at",
        beta: NotNegative = 6.0,
        decay: BelowOne = 0.995,
        temperature_high: Positive = 2.5,
        temperature_low: Positive = 2.0,
        interpolation_low: Share = 0.7,
        interpolation_high: Share = 0.95,
        wa: bool = True,
    ) -> None:
        refuse_unknown("method.base", base, BASES)
        super().__init__(model, attack, beta)
        self.average = WeightAverage(model)
        self.base, self.decay, self.wa = base, decay, wa
        self.temperatures = temperature_high, temperature_low
        self.interpolations = interpolation_low, interpolation_high

    def rectified(self, batch: Batch) -> Tensor:
        """ỹ, (B, K)."""
        tau, lam = self._annealed(*self.temperatures), self._annealed(*self.interpolations)
        with torch.no_grad():
            q = (self.average(batch.x) / tau).softmax(dim=1)
        onehot = F.one_hot(batch.y, q.shape[1]).to(q.dtype)
        trust = (lam - (q.amax(dim=1) - (q * onehot).sum(dim=1))).clamp(0, 1)[:, None]
        return trust * q + (1 - trust) * onehot

    def _annealed(self, begin: float, end: float) -> float:
        """Half a cosine from `begin` to `end` over training."""
        return end + (begin - end) * (1 + math.cos(math.pi * self.clock.fraction)) / 2

    def perturb(self, batch: Batch) -> Batch:
        label = self.rectified(batch)
        if self.base == "trades":
            return super().perturb(batch).with_adv(label=label)
        objective = Objective(self.model, cross_entropy, label)
        return batch.with_adv(self.run_attack(objective, batch.x), label=label)

    def loss(self, batch: Batch) -> Loss:
        label = batch.aux["label"]
        if self.base == "pgd_at":
            logits = self.model(batch.x_adv)
            return Loss(self.risk(logits, label).mean(), {}, logits)
        clean, adversarial = self.model(torch.cat([batch.x, batch.x_adv])).chunk(2)
        natural = self.risk(clean, label).mean()
        boundary = kl_divergence(clean, adversarial).mean()
        terms = {"ce": natural.detach(), "kl": boundary.detach()}
        return Loss(natural + self.beta * boundary, terms, adversarial)

    def after_update(self, batch: Batch) -> None:
        self.average.follow(self.model, self.decay)

    def evaluated(self) -> nn.Module:
        return self.average.network if self.wa else self.model

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (4 if self.base == "pgd_at" else 8)
