"""Adversarial distributional training, explicit and amortised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.adt_exp import require_linf, sample
from atbench.methods.adt_networks import GENERATOR_NORMS, Generator, Reversed, draw_weights
from atbench.methods.base import FixedSteps, Loss, Method


class AdtExpAm(Method):
    """ADT-EXP-AM (Dong et al. 2020, NeurIPS, arXiv 2002.05999): min_θ max_φ E_{δ ~ p_φ}[ CE(f(x + δ), y) ] + λ·H(p_φ).

    A generator names a distribution of perturbations for each image, (μ, v) = G_φ(x, g₁, g₂), from the classifier's
    gradient g₁ of CE at x and g₂ at clip(x + ε·sign(g₁)), both in the attack's mode and detached. With r ~ N(0, I) and
    σ = softplus(v), and h the entropy of u up to constants,
    u = tanh(μ + σ·r),   x' = clip(x + ε·u),   h = mean[ r²/2 + log σ + log(1 − u²) ].
    One joint backward pass of CE(f(x'), y) − λ·h with the gradient reversed at x': θ descends CE, φ ascends CE and h.
    The generator has its own optimizer (group `generator`). Cost: 7 forward passes of the classifier a batch, 3 of the
    generator.

    Source: dongyp13/Adversarial-Distributional-Training, adt_expam.py and models/generator.py, whose guards 1e-8 in the
    logarithms are kept. The entropy is a mean over pixels, so λ does not compare with a sum's. Its gradients are of the
    mean CE over the batch; here that is each example's own, divided by the size of the joint batch: the same numbers
    however the batch is split. Its generator is 256 wide for 32×32 pixels; narrower images get a narrower one here
    unless the width is set.
    Known weaknesses: the classifier meets one learned adversary, which need not be near the worst. It is not on
    RobustBench and no AutoAttack figure is known; about 52 % under PGD-20 on CIFAR-10, WRN-28-10 (from memory).

    Args:
        entropy_weight: λ.
        generator_width: channels of the generator's first layer; None: 8 for each pixel of the image's side, up to 256.
        generator_norm: `batch`, or `none` for a generator whose examples do not see each other.
    """

    generator: nn.Module

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        entropy_weight: NotNegative = 0.01,
        generator_width: Count | None = None,
        generator_norm: str = "batch",
    ) -> None:
        super().__init__(model, attack)
        require_linf(attack)
        if generator_norm not in GENERATOR_NORMS:
            known = ", ".join(GENERATOR_NORMS)
            raise ConfigError("method.generator_norm", generator_norm, "there is no such choice", f"use one of {known}")
        self.entropy_weight, self.generator_width, self.generator_norm = entropy_weight, generator_width, generator_norm

    def setup(self, data: TrainData) -> None:
        channels, width = data.source.shape[0], self._width(data)
        self.generator = Generator(3 * channels, width, 2 * channels, self.generator_norm)
        self.generator.to(data.device, data.dtype)
        draw_weights(self.generator, data.seed)

    def _width(self, data: TrainData) -> int:
        """Channels of the generator's first layer."""
        return self.generator_width or min(256, 8 * max(data.source.shape[1:]))

    def groups(self) -> dict[str, nn.Module]:
        return {"model": self.model, "generator": self.generator}

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # a generator in place of an attack

    def perturb(self, batch: Batch) -> Batch:
        """The generator's inputs: x and two gradients. It perturbs in `loss`, in the pass that trains it."""
        first = self._gradient(batch.x, batch.y)
        second = self._gradient((batch.x + self.attack.eps * first.sign()).clamp_(0, 1), batch.y)
        return batch.with_adv(inputs=torch.cat([batch.x, first, second], dim=1))

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """∇_x of the mean cross-entropy of the joint batch; unsigned, so its scale matters to the generator."""
        return self.input_gradient(x, y)[0] / (len(x) * self.clock.world)

    def loss(self, batch: Batch) -> Loss:
        mean, spread = self.generator(batch.aux["inputs"]).chunk(2, dim=1)
        unit, entropies = sample(mean, F.softplus(spread), self.rng("noise").normal(batch.x))
        entropy = entropies.mean()
        x_adv = clip(batch.x + self.attack.eps * unit)
        logits = self.model(Reversed.apply(x_adv))
        risk = self.risk(logits, batch.y).mean()
        terms = {"ce": risk.detach(), "entropy": entropy.detach()}
        return Loss(risk - self.entropy_weight * entropy, terms, logits)
