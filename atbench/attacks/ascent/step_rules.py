"""Step rules with a memory: from a gradient to the next point, before the projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from atbench.attacks.norms.lp_ball import Ball, Radius, Random

#: (x_adv, ∇ objective, sizes) → the next point, before the projection.
StepRule = Callable[[Tensor, Tensor, Radius], Tensor]


class Rule(ABC):
    """A step rule with a memory, for one run; the memory is per example, cut to the examples still searched."""

    @abstractmethod
    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        """The point after a step from `x_adv`, before the projection; `sizes` is a number or (B, 1, 1, 1). A new
        tensor.
        """

    @abstractmethod
    def take(self, live: Tensor) -> None:
        """Cut the memory to the examples `live` (a mask)."""


class Momentum(Rule):
    """g ← μ·g + ∇ / mean|∇|, then x' + step_size · d(g) (MI-FGSM, Dong et al. 2018, CVPR, arXiv 1710.06081)."""

    def __init__(self, ball: Ball, like: Tensor, momentum: float) -> None:
        self.ball, self.momentum, self.velocity = ball, momentum, torch.zeros_like(like)

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        scale = grad.abs().flatten(1).mean(dim=1).clamp_min(1e-12).view(-1, *[1] * (grad.ndim - 1))
        self.velocity = self.momentum * self.velocity + grad / scale
        return self.ball.ascend(x_adv, self.velocity, sizes)

    def take(self, live: Tensor) -> None:
        self.velocity = self.velocity[live]


class Summed(Rule):
    """v ← v + ∇, then x' + step_size · d(v): where a gradient is never cleared (TRS, Yang et al. 2021, its code)."""

    def __init__(self, ball: Ball, like: Tensor) -> None:
        self.ball, self.total = ball, torch.zeros_like(like)

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        self.total = self.total + grad
        return self.ball.ascend(x_adv, self.total, sizes)

    def take(self, live: Tensor) -> None:
        self.total = self.total[live]


class Averaged(Rule):
    """v ← μ·v + (1 − μ)·d(∇), then x' + step_size · v (CCAT, Stutz et al. 2020, ICML, arXiv 1910.06259, App. B)."""

    def __init__(self, ball: Ball, like: Tensor, momentum: float) -> None:
        self.ball, self.momentum, self.velocity = ball, momentum, torch.zeros_like(like)

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * self.ball.steepest(grad)
        return x_adv + sizes * self.velocity

    def take(self, live: Tensor) -> None:
        self.velocity = self.velocity[live]


class Adam(Rule):
    """x' + step_size · m̂ / (√v̂ + 1e-9), m and v the running means (0.9, 0.999) of ∇ and ∇², without their bias.

    Kingma & Ba 2015, ICLR, arXiv 1412.6980; constants of google-deepmind/local_linearity_regularizer (LLR).
    """

    BETA1, BETA2, TINY = 0.9, 0.999, 1e-9

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        self.count += 1
        self.mean = torch.lerp(grad, self.mean, self.BETA1)
        self.square = torch.lerp(grad.square(), self.square, self.BETA2)
        mean, square = self.mean / (1 - self.BETA1**self.count), self.square / (1 - self.BETA2**self.count)
        return x_adv + sizes * mean / (square.sqrt() + self.TINY)

    def take(self, live: Tensor) -> None:
        self.mean, self.square = self.mean[live], self.square[live]


class Wrapper(Rule):
    """A rule around another one, `rule`."""

    rule: StepRule

    def take(self, live: Tensor) -> None:
        if isinstance(self.rule, Rule):
            self.rule.take(live)


class Noisy(Wrapper):
    """Another rule's point + ω·N(0, 1) in every pixel (FAT, Zhang et al. 2020, ICML, arXiv 2002.11242).

    The noise of a step is drawn for the whole batch, whichever examples are still searched.
    """

    def __init__(self, rule: StepRule, like: Tensor, omega: float, rng: Random) -> None:
        self.rule, self.like, self.omega, self.rng = rule, like, omega, rng
        self.rows = torch.arange(len(like), device=like.device)

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        noise = self.rng.normal(self.like)[self.rows]
        return self.rule(x_adv, grad, sizes).add_(noise, alpha=self.omega)

    def take(self, live: Tensor) -> None:
        super().take(live)
        self.rows = self.rows[live]


class Zeroed(Wrapper):
    """Another rule on the gradient without its smallest components: those below the `share`-quantile of |∇| of their
    example are 0 (ZeroGrad, Golgooni et al. 2021, arXiv 2103.15476). A sign step leaves their pixels where they are.
    """

    def __init__(self, rule: StepRule, share: float) -> None:
        self.rule, self.share = rule, share

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        # torch.quantile does just this, for no more than 2^24 numbers.
        ordered = grad.abs().flatten(1).sort(dim=1).values
        rank = self.share * (ordered.shape[1] - 1)
        low, high = ordered[:, int(rank)], ordered[:, min(int(rank) + 1, ordered.shape[1] - 1)]
        least = torch.lerp(low, high, rank - int(rank)).view(-1, *[1] * (grad.ndim - 1))
        return self.rule(x_adv, torch.where(grad.abs() < least, 0, grad), sizes)


class Decaying(Wrapper):
    """Another rule with steps of step_size / t^decay, t = 1, 2, … the step's number: 1/t in SSDRL."""

    def __init__(self, rule: StepRule, decay: float) -> None:
        self.rule, self.decay, self.count = rule, decay, 0

    def __call__(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        self.count += 1
        return self.rule(x_adv, grad, sizes / self.count**self.decay)


def follow(x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
    """x' + step_size · ∇, whose length is the gradient's own: for an objective that bounds its maximiser itself."""
    return x_adv + sizes * grad


RULES: tuple[str, ...] = ("steepest", "averaged", "adam", "summed", "gradient")


def make_rule(
    name: str,
    ball: Ball,
    like: Tensor,
    momentum: float,
    noise: float = 0.0,
    rng: Random | None = None,
    zeroed: float = 0.0,
    decay: float = 0.0,
) -> StepRule:
    """The rule called `name`, for a search around `like`; `steepest` with a momentum is `Momentum`. A `noise` needs
    `rng`.
    """
    if noise:
        assert rng is not None, "noise needs `rng`"
        return Noisy(make_rule(name, ball, like, momentum, zeroed=zeroed, decay=decay), like, noise, rng)
    if decay:
        return Decaying(make_rule(name, ball, like, momentum, zeroed=zeroed), decay)
    if zeroed:
        return Zeroed(make_rule(name, ball, like, momentum), zeroed)
    if name == "gradient":
        return follow
    if name == "adam":
        return Adam(like)
    if name == "summed":
        return Summed(ball, like)
    if name == "averaged":
        return Averaged(ball, like, momentum)
    return Momentum(ball, like, momentum) if momentum else ball.ascend
