"""Adversarial distributional training, explicit, a distribution fitted to each example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.models import attack_mode
from atbench.runs.seeding import Draws


class AdtExp(Method):
    """ADT-EXP (Dong et al. 2020, NeurIPS, arXiv 2002.05999): min_θ max_{μ, v} E[ CE(f(x'), y) ] + λ·H.

    Each example has a distribution of perturbations, with parameters μ and v of one number a pixel, both from 0:
    r ~ N(0, I),  σ = softplus(v),  u = tanh(μ + σ·r),  x' = clip(x + ε·u),  h = mean[ r²/2 + log σ + log(1 − u²) ],
    h the entropy of u up to constants. Inner, in the attack's mode: `attack.steps` steps, each with the gradient of
    CE(f(x'), y) + λ·h summed over `samples` draws of r. The step is Adam's with β₁ = β₂ = 0: G is the sum of all
    gradients so far, and μ ← μ + step_size·G / (|G| + 1e-8), v alike. Outer: CE(f(x'), y) at one further draw.
    Cost: (2·k·samples + 3) forward passes a batch, 73 for 7 steps of 5.

    Source: dongyp13/Adversarial-Distributional-Training, adt_exp.py, whose guards 1e-8 in the logarithms are kept.
    Paper and code: the code never clears the gradients of μ and v between the steps. That is what the published
    networks were trained with; `accumulate: false` clears them.
    The gradient is of the mean CE over the batch and of a mean h over all its pixels, as in the code, so that G is
    divided by the size of the joint batch; the entropy's part is then as small as Adam's 1e-8 (4.6e-8 a pixel at 64
    images of CIFAR-10), and another batch size is another attack. λ does not compare with that of a sum over pixels.
    Known weaknesses: 35 gradients a batch for what one PGD-7 costs 7; it is not on RobustBench and no AutoAttack figure
    is known; about 52 % under PGD-20 on CIFAR-10, WRN-28-10 (from memory).

    Args:
        entropy_weight: λ.
        step_size: of μ and v, not of pixels: `attack.step_size` is not used.
        samples: draws of r for each step.
        accumulate: whether a step uses the sum of all gradients so far, or its own alone.
    """

    ADAM_EPS = 1e-8  # torch.optim.Adam's default, which adt_exp.py takes

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        entropy_weight: NotNegative = 0.01,
        step_size: NotNegative = 0.3,
        samples: Count = 5,
        accumulate: bool = True,
    ) -> None:
        super().__init__(model, attack)
        require_linf(attack)
        self.entropy_weight, self.step_size = entropy_weight, step_size
        self.samples, self.accumulate = samples, accumulate

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # steps of μ and v, which no ball bounds

    def perturb(self, batch: Batch) -> Batch:
        noise = self.rng("noise")
        with attack_mode(self, self.attack.bn):
            mean, spread = self._fit(batch, noise)
        unit, _ = sample(mean, F.softplus(spread), noise.normal(batch.x))
        return batch.with_adv(clip(batch.x + self.attack.eps * unit))

    def _fit(self, batch: Batch, noise: Draws) -> tuple[Tensor, Tensor]:
        """μ and v of every example after the inner maximisation."""
        mean, spread = torch.zeros_like(batch.x), torch.zeros_like(batch.x)
        total = [torch.zeros_like(batch.x), torch.zeros_like(batch.x)]
        for _ in range(self.attack.steps):
            if not self.accumulate:
                total = [torch.zeros_like(batch.x), torch.zeros_like(batch.x)]
            mean, spread = mean.detach().requires_grad_(), spread.detach().requires_grad_()
            for _ in range(self.samples):
                value = self._value(batch, mean, spread, noise.normal(batch.x))
                grads = torch.autograd.grad(value.sum(), [mean, spread])
                # Divided here and not in the value: half precision would lose so small a gradient on its way.
                total = [g + grad / (len(batch) * self.clock.world) for g, grad in zip(total, grads, strict=True)]
            mean, spread = (
                p.detach() + self.step_size * g / (g.abs() + self.ADAM_EPS)
                for p, g in zip((mean, spread), total, strict=True)
            )
        return mean, spread

    def _value(self, batch: Batch, mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """CE(f(x'), y) + λ·h of each example at one draw, (B,)."""
        unit, entropy = sample(mean, F.softplus(spread), noise)
        logits = self.model(clip(batch.x + self.attack.eps * unit))
        return cross_entropy(logits, batch.y) + self.entropy_weight * entropy

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        return Loss(self.risk(logits, batch.y).mean(), {}, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps * self.samples + 3


def sample(mean: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """u = tanh(μ + σ·r) in [−1, 1], and −log of its density at u averaged over each example's pixels, (B,), without
    the constant.
    """
    unit = torch.tanh(mean + sigma * noise)
    entropy = noise**2 / 2 + torch.log(sigma + 1e-8) + torch.log(1 - unit**2 + 1e-8)
    return unit, entropy.flatten(1).mean(dim=1)


def require_linf(attack: GradientAttack) -> None:
    """Refuse an attack in another norm: ε·u fills a box."""
    if attack.norm != "linf":
        raise ConfigError("attack.norm", attack.norm, "the distribution of perturbations fills a box", "use linf")
