"""Adversarial vertex mixup."""

from __future__ import annotations

from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.soft_labels import smooth_label


class AvMixup(Method):
    """AVmixup (Lee et al. 2020, CVPR, arXiv 2003.02484): CE(f(w·x + (1 − w)·x_v), w·S(y, λ₁) + (1 − w)·S(y, λ₂)).

    x_v = clip(x + γ · (x_pgd − x)) is the adversarial vertex, clipped to the box and not to the ball: it lies up to γ·ε
    away. S(y, λ) has λ on the label and (1 − λ)/(K − 1) on each other class, w ~ U(0, 1) = Beta(1, 1), one number an
    image for image and label. λ₁ = 1 is the label itself; λ₂ = 0.1 is the uniform label for K = 10, and below 1/K the
    vertex would say that the label is wrong.
    Inner: cross-entropy PGD with the true label, normalised by batch statistics that are not tracked. Outer: one
    forward, of the mixed images. Cost: (2k + 3) forward passes a batch.

    Source: Saehyung-Lee/cifar10_challenge (pgd_attack.py, `perturb_avmixup`; config.json), made from MadryLab's. Left
    out: feature scattering in place of PGD, with λ₁ = 0.5 and λ₂ = 0.7, which is not in that repository.
    Known weaknesses: smooth labels again. On CIFAR-10 a reimplementation reports PGD-20 57.5 % and CW-20 40.5 %, the
    paper 58.2 % and 53.6 % (its figures as quoted there). No AutoAttack figure is known; judge it by AutoAttack.

    Args:
        gamma: γ.
        clean_share: λ₁.
        vertex_share: λ₂.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        gamma: NotNegative = 2.0,
        clean_share: Share = 1.0,
        vertex_share: Share = 0.1,
    ) -> None:
        super().__init__(model, attack)
        self.gamma, self.clean_share, self.vertex_share = gamma, clean_share, vertex_share

    def perturb(self, batch: Batch) -> Batch:
        x, x_pgd = batch.x, super().perturb(batch).x_adv
        vertex = (x + self.gamma * (x_pgd - x)).clamp(0, 1)
        weight = self.weight(batch)
        # From the vertex on: exactly x where the vertex is x.
        mixed = vertex + weight.view(-1, *[1] * (x.ndim - 1)) * (x - vertex)
        return batch.with_adv(mixed, weight=weight)

    def weight(self, batch: Batch) -> Tensor:
        """w (B,), the share of the clean image."""
        return (self.rng("mix").uniform(batch.x.new_empty(len(batch))) + 1) / 2

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        clean, vertex = (smooth_label(batch.y, share, logits) for share in (self.clean_share, self.vertex_share))
        label = vertex + batch.aux["weight"].to(logits.dtype)[:, None] * (clean - vertex)
        return Loss(self.risk(logits, label).mean(), {}, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 3
