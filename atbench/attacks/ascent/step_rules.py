"""Step rules: from a gradient to the next point, before the projection."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from atbench.attacks.norms.lp_ball import Ball


class Rule(ABC):
    """A step rule of one run. Its memory is per example and is cut to the examples still searched."""

    @abstractmethod
    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        """The point after a step from `x_adv`, before the projection; `lengths` is a number or (B, 1, 1, 1). A new
        tensor.
        """

    @abstractmethod
    def take(self, live: Tensor) -> None:
        """Cut the memory to the examples `live` (a mask)."""


class Steepest(Rule):
    """x' + step_size · d(∇), d the ball's steepest direction."""

    def __init__(self, ball: Ball) -> None:
        self.ball = ball

    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        return self.ball.ascend(x_adv, grad, lengths)

    def take(self, live: Tensor) -> None:
        """No memory to cut."""


class Momentum(Rule):
    """g ← μ·g + ∇ / mean|∇|, then x' + step_size · d(g) (MI-FGSM, Dong et al. 2018, CVPR, arXiv 1710.06081)."""

    def __init__(self, ball: Ball, like: Tensor, momentum: float) -> None:
        self.ball, self.momentum, self.velocity = ball, momentum, torch.zeros_like(like)

    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        scale = grad.abs().flatten(1).mean(dim=1).clamp_min(1e-12).view(-1, *[1] * (grad.ndim - 1))
        self.velocity = self.momentum * self.velocity + grad / scale
        return self.ball.ascend(x_adv, self.velocity, lengths)

    def take(self, live: Tensor) -> None:
        self.velocity = self.velocity[live]


class Summed(Rule):
    """v ← v + ∇, then x' + step_size · d(v): where a gradient is never cleared (TRS, Yang et al. 2021, its code)."""

    def __init__(self, ball: Ball, like: Tensor) -> None:
        self.ball, self.total = ball, torch.zeros_like(like)

    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        self.total = self.total + grad
        return self.ball.ascend(x_adv, self.total, lengths)

    def take(self, live: Tensor) -> None:
        self.total = self.total[live]


class Averaged(Rule):
    """v ← μ·v + (1 − μ)·d(∇), then x' + step_size · v (CCAT, Stutz et al. 2020, ICML, arXiv 1910.06259, App. B)."""

    def __init__(self, ball: Ball, like: Tensor, momentum: float) -> None:
        self.ball, self.momentum, self.velocity = ball, momentum, torch.zeros_like(like)

    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * self.ball.steepest(grad)
        return x_adv + lengths * self.velocity

    def take(self, live: Tensor) -> None:
        self.velocity = self.velocity[live]


class Adam(Rule):
    """x' + step_size · m̂ / (√v̂ + 1e-9), m and v the running means (0.9, 0.999) of ∇ and ∇², without their bias.

    Kingma & Ba 2015, ICLR, arXiv 1412.6980; constants of google-deepmind/local_linearity_regularizer (LLR).
    """

    BETA1, BETA2, TINY = 0.9, 0.999, 1e-9

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, x_adv: Tensor, grad: Tensor, lengths: Tensor) -> Tensor:
        self.count += 1
        self.mean = torch.lerp(grad, self.mean, self.BETA1)
        self.square = torch.lerp(grad.square(), self.square, self.BETA2)
        mean, square = self.mean / (1 - self.BETA1**self.count), self.square / (1 - self.BETA2**self.count)
        return x_adv + lengths * mean / (square.sqrt() + self.TINY)

    def take(self, live: Tensor) -> None:
        self.mean, self.square = self.mean[live], self.square[live]


RULES: tuple[str, ...] = ("steepest", "averaged", "adam", "summed")


def make_rule(name: str, ball: Ball, like: Tensor, momentum: float) -> Rule:
    """The rule called `name` for a search around `like`; `steepest` with a momentum is `Momentum`."""
    if name == "adam":
        return Adam(like)
    if name == "summed":
        return Summed(ball, like)
    if name == "averaged":
        return Averaged(ball, like, momentum)
    return Momentum(ball, like, momentum) if momentum else Steepest(ball)
