"""Batches in which a part of the images is replaced by adversarial ones of random strength."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, SelfLabelled, cross_entropy, likelihood, wrong_classes
from atbench.config.ranges import Positive, Share
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method

TARGETS = ("least_likely", "label", "random")


class KurakinMixedBatch(Method):
    """Adversarial training at scale (Kurakin et al. 2017, ICLR, arXiv 1611.01236, eq. 1): k of the m images of a batch
    are replaced by adversarial ones, 1/((m − k) + λk) · ( Σ_clean CE(f(x_i), y_i) + λ Σ_adv CE(f(x'_i), y_i) ).

    Inner, for the k images alone: one step from x, x' = x − ε_i·sign(∇_x CE(f(x), t)), t the class that f finds least
    likely ("step l.l."), so that the step says nothing of the label; ε_i = |n|, n ~ N(0, σ²) cut off at the attack's ε,
    drawn for each image. Outer: one joint forward of all m images in their order, true labels, train mode: BatchNorm
    sees the mixture. m and k are those of the joint batch of all processes.
    Cost: (2k·share + 3) forward passes a batch for k steps, 4 by default.

    From memory: all the paper's numbers (k = m/2, λ = 0.3, ε up to 16 of 255 with σ = 8; no training code was
    published), and that the paper insists on the joint forward. A random target is one of the wrong classes here.
    Known weaknesses: robust against one step only; the paper's own iterative attacks leave little. With `label` targets
    ("FGSM") labels leak: adversarial images become easier than clean ones. No AutoAttack figure is known.

    Args:
        share: k/m, the part of the batch that is attacked.
        weight: λ, what an adversarial image counts; a clean one counts 1.
        sigma: σ in units of the attack's ε.
        target: `least_likely`; `random`; or `label`, which climbs the loss of the true label.
        delay: share of training on clean images before the first adversarial one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        share: Share = 0.5,
        weight: Positive = 0.3,
        sigma: Positive = 0.5,
        target: str = "least_likely",
        delay: Share = 0.0,
    ) -> None:
        super().__init__(model, attack)
        if target not in TARGETS:
            raise ConfigError("method.target", target, "there is no such choice", f"use one of {', '.join(TARGETS)}")
        self.share, self.weight, self.sigma, self.target, self.delay = share, weight, sigma, target, delay
        self.requires_hard_labels = target == "random"
        self.classes = 0

    def setup(self, data: TrainData) -> None:
        self.classes = len(data.source.classes)

    @property
    def _share(self) -> float:
        return 0.0 if self.clock.fraction < self.delay else self.share

    def perturb(self, batch: Batch) -> Batch:
        rows = self.subset_mask(batch, self._share)
        # Radii and starts are drawn for all rows: draws for a part would depend on how processes share the batch.
        strength = self._strengths(batch.x)
        start = self.attack.begin(batch.x, strength * self.attack.eps, self.rng())
        x_adv = self.run_attack(
            self._objective(batch, rows),
            batch.x[rows],
            start=start[rows],
            eps=(strength * self.attack.eps)[rows],
            step_size=(strength * self.attack.step_size)[rows],
        )
        mixed = batch.x.clone()
        mixed[rows] = x_adv
        return batch.with_adv(mixed, rows=rows)

    def _strengths(self, x: Tensor) -> Tensor:
        """ε_i as shares of ε, (B,): |n|, n normal with deviation σ and cut off at 1, by its inverse distribution
        function; to redraw what is outside would make rows depend on each other.
        """
        scale = self.sigma * math.sqrt(2)
        u = self.rng("radius").uniform(x[:, 0, 0, 0])
        return (scale * torch.erfinv(u.abs() * math.erf(1 / scale))).clamp_max(1)

    def _objective(self, batch: Batch, rows: Tensor) -> Objective:
        y = batch.y[rows]
        if self.target == "least_likely":
            return SelfLabelled(self.model, likelihood, lambda logits: logits.argmin(dim=1))
        if self.target == "label":
            return Objective(self.model, cross_entropy, y)
        u = self.rng("target").uniform(batch.x[:, 0, 0, 0])[rows]
        return Objective(self.model, likelihood, wrong_classes(y, self.classes, u))

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y)
        weights = torch.ones_like(risk).masked_fill(batch.aux["rows"], self.weight)
        total = self.clock.world * (weights * risk).sum() / self._normaliser(len(batch))
        return Loss(total, {}, logits)

    def _normaliser(self, rows: int) -> float:
        """(m − k) + λk over the joint batch: what the rows of `portion` add up to, whichever process has them."""
        m = rows * self.clock.world
        k = math.floor(m * self._share + 1e-9)
        return (m - k) + self.weight * k

    def forward_cost(self, steps: int) -> float:
        return 2 * steps * self._share + 3
