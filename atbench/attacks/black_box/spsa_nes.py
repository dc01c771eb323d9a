"""Gradient ascent without gradients: the gradient of the margin, estimated from differences of outputs.

    g(x') = mean over v of  (m(x' + r·v) − m(x' − r·v)) / (2r) · v,      m = max_{k≠y} z_k − z_y

SPSA draws v from {−1, 1}^d and follows g with Adam; NES draws v from N(0, I) and follows the sign of an average of g.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.ascent.loop import REPACK
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import margin
from atbench.attacks.restarts import BestCandidates
from atbench.config.ranges import AnyCount, Count, NotNegative, Positive
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws


@dataclass(eq=False, repr=False)
class GradientEstimation(Attack, ABC):
    """Ascent along an estimated gradient; subclasses define the noise v and the step along g.

    Queries are images: x' ± r·v is clipped to the box, which the papers' codes do not do. Defences that encode or
    quantise their input, the purpose of these attacks, need not be defined outside it.

    Args:
        steps: iterations; each costs `samples` + 1 queries of an example that is not broken yet.
        samples: queries per estimate, in pairs x' + r·v and x' − r·v.
        radius: r, in units of the [0, 1] pixel scale.
        rel_step_size: length of a step as a share of `eps`.
    """

    access: ClassVar[str] = "queries"
    #: Pairs whose noise is drawn at once: (B, PAIRS, C, H, W) numbers are in memory.
    PAIRS = 8
    #: Pairs that one pass may take even where the batch is smaller.
    AT_ONCE = 64

    samples: Count
    radius: Positive
    rel_step_size: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.samples % 2:
            why = "queries are made in pairs, one to either side"
            raise ConfigError("attack.samples", self.samples, why, "use an even number of at least 2")
        self.step_size = self.rel_step_size * self.eps

    @abstractmethod
    def noise(self, rng: ExampleDraws, like: Tensor) -> Tensor:
        """v, shaped like `like`."""

    @abstractmethod
    def step(self, grad: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The step of length `step_size` at the `step`-th estimate, from 1, and the memory (…, B, C, H, W) after it."""

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        best, rows = BestCandidates(x), torch.arange(len(x), device=x.device)
        x_adv, memory, at_once = x, x.new_zeros(2, *x.shape), max(len(x), self.AT_ONCE)
        with torch.no_grad():
            for step in range(1, self.steps + 1):
                grad = self.gradient(target, x_adv, y[rows], rng, at_once)
                move, memory = self.step(grad, memory, step)
                x_adv = self.ball.project(x[rows], x_adv + move, self.eps)
                value = margin(target.logits(x_adv), y[rows])
                best.add(rows, x_adv, value, value > 0)
                live = ~best.broken[rows]
                count = int(live.sum())
                if count == 0:
                    break
                if count <= (1 - REPACK) * len(live):
                    rows, x_adv, memory, rng = rows[live], x_adv[live], memory[:, live], rng.take(live)
        return best.x_adv

    def gradient(self, target: Target, x_adv: Tensor, y: Tensor, rng: ExampleDraws, at_once: int) -> Tensor:
        """g (B, C, H, W), from `samples` queries of each example; no pass takes more than `at_once` pairs."""
        pairs, total = self.samples // 2, torch.zeros_like(x_adv)
        for first in range(0, pairs, self.PAIRS):
            count = min(self.PAIRS, pairs - first)
            v = self.noise(rng, x_adv.new_empty(len(x_adv), count, *x_adv.shape[1:]))
            slopes = [
                self.slopes(target, x_adv[:, None], part, y) for part in v.split(max(at_once // len(x_adv), 1), dim=1)
            ]
            total += (torch.cat(slopes, dim=1)[..., None, None, None] * v).sum(dim=1)
        return total / pairs

    def slopes(self, target: Target, x_adv: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """(B, n): the slope of the margin along each `v` (B, n, C, H, W)."""
        queries = torch.stack([x_adv + self.radius * v, x_adv - self.radius * v]).clamp_(0, 1)
        labels = y[None, :, None].expand(queries.shape[:3]).flatten()
        value = margin(target.logits(queries.flatten(0, 2)), labels).view(queries.shape[:3])
        return (value[0] - value[1]) / (2 * self.radius)


@dataclass(eq=False, repr=False)
class SPSA(GradientEstimation):
    """Simultaneous perturbation with Adam (Uesato et al. 2018, ICML, arXiv 1802.05666, Algorithm 1).

        x' ← Π( x' + step_size · m̂ / (√v̂ + 1e-8) )

    L∞ only: Adam gives every pixel a step of about one length.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    BETAS = (0.9, 0.999)

    steps: AnyCount = 100
    samples: Count = 128
    radius: Positive = 0.01
    rel_step_size: NotNegative = 0.32

    def noise(self, rng: ExampleDraws, like: Tensor) -> Tensor:
        return rng.uniform(like).sign()

    def step(self, grad: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        first, second = self.BETAS
        mean = first * memory[0] + (1 - first) * grad
        square = second * memory[1] + (1 - second) * grad**2
        scaled = (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + 1e-8)
        return self.step_size * scaled, torch.stack([mean, square])


@dataclass(eq=False, repr=False)
class NES(GradientEstimation):
    """Natural evolution strategies (Ilyas et al. 2018, ICML, arXiv 1804.08598, Algorithm 1) with momentum.

        ḡ ← μ·ḡ + (1 − μ)·g,    x' ← Π( x' + step_size · d(ḡ) ),    d = sign (L∞) or ḡ/‖ḡ‖₂ (L2)

    The margin stands for the paper's cross-entropy: where a network is sure, differences of the latter vanish in
    float32. The step size stays as it is; the authors' code halves it where the loss stands still.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: AnyCount = 200
    samples: Count = 50
    radius: Positive = 0.001
    rel_step_size: NotNegative = 0.2
    momentum: NotNegative = 0.9

    def noise(self, rng: ExampleDraws, like: Tensor) -> Tensor:
        return rng.normal(like)

    def step(self, grad: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mean = self.momentum * memory[0] + (1 - self.momentum) * grad
        return self.step_size * self.ball.steepest(mean), mean[None]
