"""Adversarial distributional training, explicit and amortised."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.models import attack_mode
from atbench.runs.seeding import generator

GENERATOR_NORMS = ("batch", "none")


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

    generator: Generator

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        entropy_weight: NotNegative = 0.01,
        generator_width: Count | None = None,
        generator_norm: str = "batch",
    ) -> None:
        super().__init__(model, attack)
        if attack.norm != "linf":
            raise ConfigError("attack.norm", attack.norm, "adt_exp_am fills a box", "use linf")
        if generator_norm not in GENERATOR_NORMS:
            known = ", ".join(GENERATOR_NORMS)
            raise ConfigError("method.generator_norm", generator_norm, "there is no such choice", f"use one of {known}")
        self.entropy_weight, self.generator_width, self.generator_norm = entropy_weight, generator_width, generator_norm

    def setup(self, data: TrainData) -> None:
        channels, *sides = data.source.shape
        width = self.generator_width or min(256, 8 * max(sides))
        self.generator = Generator(channels, width, self.generator_norm).to(data.device, data.dtype)
        self.generator.draw(data.seed)

    def groups(self) -> dict[str, nn.Module]:
        return {"model": self.model, "generator": self.generator}

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # a generator in place of an attack

    def perturb(self, batch: Batch) -> Batch:
        """The generator's inputs: x and two gradients. It perturbs in `loss`, in the pass that trains it."""
        with attack_mode(self, self.attack.bn):
            first = self._gradient(batch.x, batch.y)
            second = self._gradient((batch.x + self.attack.eps * first.sign()).clamp_(0, 1), batch.y)
        return batch.with_adv(inputs=torch.cat([batch.x, first, second], dim=1))

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """∇_x of the mean cross-entropy of the joint batch; unsigned, so its scale matters to the generator."""
        x = x.detach().requires_grad_()
        total = cross_entropy(self.model(x), y).sum()
        return torch.autograd.grad(total, x)[0] / (len(x) * self.clock.world)

    def loss(self, batch: Batch) -> Loss:
        mean, spread = self.generator(batch.aux["inputs"]).chunk(2, dim=1)
        unit, entropy = sample(mean, F.softplus(spread), self.rng("noise").normal(batch.x))
        x_adv = clip(batch.x + self.attack.eps * unit)
        logits = self.model(Reversed.apply(x_adv))
        risk = self.risk(logits, batch.y).mean()
        terms = {"ce": risk.detach(), "entropy": entropy.detach()}
        return Loss(risk - self.entropy_weight * entropy, terms, logits)


def sample(mean: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """u = tanh(μ + σ·r) in [−1, 1], and −log of its density at u averaged over everything, without the constant."""
    unit = torch.tanh(mean + sigma * noise)
    entropy = noise**2 / 2 + torch.log(sigma + 1e-8) + torch.log(1 - unit**2 + 1e-8)
    return unit, entropy.mean()


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is reversed: what is upstream ascends what is downstream."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Residual(nn.Module):
    """relu(shortcut(x) + conv-norm-relu-conv-norm(x)), 3×3; the shortcut is 1×1-norm where the width changes."""

    def __init__(self, count: int, out: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(count, out, 3, norm), nn.ReLU(), *convolution(out, out, 3, norm))
        self.shortcut = nn.Identity() if count == out else nn.Sequential(*convolution(count, out, 1, norm))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.shortcut(x) + self.body(x))
        return out


class Generator(nn.Sequential):
    """(B, 3C, H, W) → (B, 2C, H, W): conv-norm-relu to `width` w, residual blocks w → 2w → 2w → w, conv. No biases."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__(
            *convolution(3 * channels, width, 3, norm),
            nn.ReLU(),
            Residual(width, 2 * width, norm),
            Residual(2 * width, 2 * width, norm),
            Residual(2 * width, width, norm),
            nn.Conv2d(width, 2 * channels, 3, 1, 1, bias=False),
        )

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Weights N(0, 0.02), scales of the normalisation N(1, 0.02), the same on every process."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 4:
                parameter.normal_(0, 0.02, generator=generator(parameter.device, seed, "adt-generator", name))
            elif name.endswith("weight"):
                parameter.normal_(1, 0.02, generator=generator(parameter.device, seed, "adt-generator", name))


def convolution(count: int, out: int, side: int, norm: str) -> list[nn.Module]:
    """A convolution that keeps the image's size, and its normalisation."""
    after: list[nn.Module] = [nn.BatchNorm2d(out)] if norm == "batch" else []
    return [nn.Conv2d(count, out, side, 1, side // 2, bias=False), *after]
