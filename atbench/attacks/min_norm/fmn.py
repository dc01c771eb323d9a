"""FMN, the Fast Minimum-Norm attack (Pintor et al. 2021, NeurIPS, arXiv 2102.12827, alg. 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import margin
from atbench.attacks.min_norm.base import TINY, NearestAdversarial, dual_norm, wide
from atbench.config.ranges import AnyCount, NotNegative
from atbench.runs.seeding import ExampleDraws


@dataclass(eq=False, repr=False)
class FMN(Attack):
    """Normalised gradient steps inside a ball whose radius follows the boundary.

    With m = max_{k≠y} z_k − z_y at x + δ, g = ∇m, and δ* the smallest perturbation so far that is misclassified:

        ε ← (1 + γ) · max( ε, ‖δ‖_p + |m| / ‖g‖_q )   until x + δ is misclassified for the first time, from ε = 0
        ε ← min( (1 − γ) · ε, ‖δ*‖_p )                where x + δ is misclassified
        ε ← (1 + γ) · ε                               elsewhere
        δ ← clip( Π_ε( δ + α · g / ‖g‖₂ ) )

    with Π_ε the Euclidean projection on the p-ball, and α and γ falling from their first to their last value along half
    a cosine. In the paper the first line is ε ← ‖δ‖_p + |m| / ‖g‖_q, the linearised distance. On a network that is
    linear there δ then comes to lie on the boundary and is never carried across, and what the box clips from δ is
    taken from the next ε too: on 8x8 digits (many black pixels) some examples were never broken. That ε never falls
    and overshoots by γ, as everywhere else, breaks them.

    Args:
        steps: one forward and one backward pass each.
        step_size: the first α, an L2 length in units of the pixel scale whatever the norm; the last is a hundredth.
        gamma: the first γ; the last is 0.001.

    Returns the nearest misclassified iterate, `x` where there is none.
    """

    minimal: ClassVar[bool] = True

    LAST_STEP, LAST_GAMMA = 0.01, 0.001  # pralab/Fast-Minimum-Norm-FMN-Attack, fmn.py

    steps: AnyCount = 1000
    step_size: NotNegative = 1.0
    gamma: NotNegative = 0.05

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        nearest, p = NearestAdversarial(self.ball, x), self.ball.p
        delta = torch.zeros_like(x)
        largest = self.ball.norm(torch.maximum(x, 1 - x))  # no perturbation within the box is longer
        radius = torch.zeros_like(largest)
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps):
                x_adv = (x + delta).requires_grad_(step < self.steps)
                logits = target.logits(x_adv)
                gap = margin(logits, y)
            wrong = logits.detach().argmax(dim=1) != y
            nearest.offer(x_adv.detach(), wrong)
            if step == self.steps:
                break
            grad = torch.autograd.grad(gap.sum(), x_adv)[0]
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            gamma = self.LAST_GAMMA + (self.gamma - self.LAST_GAMMA) * cosine
            ahead = self.ball.norm(delta) + gap.detach().abs() / (dual_norm(grad, p) + TINY)
            ahead = torch.where(nearest.distance.isinf(), torch.maximum(radius, ahead), radius)
            radius = torch.where(wrong, torch.minimum((1 - gamma) * radius, nearest.distance), (1 + gamma) * ahead)
            radius = torch.minimum(radius, largest)
            alpha = self.step_size * (self.LAST_STEP + (1 - self.LAST_STEP) * cosine)
            delta = delta + alpha * grad / wide(grad.flatten(1).norm(dim=1) + TINY, grad)
            delta = (x + self.ball.shrink(delta, radius)).clamp(0, 1) - x
        return nearest.image
