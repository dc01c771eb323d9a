"""The interface of attacks that only evaluate: from a network, images and labels to adversarial images.

Methods train with a `GradientAttack`, which maximises an objective of theirs. An `Attack` has an objective of its own
and looks for one misclassified image near each x. The evaluation judges the images that it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import misclassified
from atbench.attacks.losses import Objective, cross_entropy
from atbench.attacks.norms.lp_ball import ball
from atbench.config.ranges import AnyCount, NotNegative
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws


class Target(Protocol):
    """The network under attack. `logits` counts its passes, checks its values, and is differentiable in `x`."""

    network: nn.Module

    def logits(self, x: Tensor) -> Tensor:
        """(B, K) for images (B, C, H, W) in [0, 1]."""


@dataclass(eq=False, repr=False)
class Attack(ABC):
    """A search for misclassified images in the ball and the box; subclasses implement `perturb`.

    norms: those that the attack is defined for.
    access: `gradient` (of the logits), `features` (their gradient), `queries` (outputs only), `transfer` (another
        network's gradients) or `noise`.
    minimal: a minimum-norm attack. It looks for the nearest misclassified image and `eps` does not bound its answer;
        an image outside the ball is no success, but its distance is recorded.
    least_classes: the least number of classes for its objective.

    Args of every attack: `norm`, `eps`, and `steps`: iterations, or queries of an attack without gradients.
    Raises ConfigError for a norm that it is not defined for.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[str] = "gradient"
    minimal: ClassVar[bool] = False
    least_classes = 2

    norm: str
    eps: NotNegative
    steps: AnyCount

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            why = f"{type(self).__name__} is not defined for it"
            raise ConfigError("eval.norm", self.norm, why, f"use {' or '.join(self.norms)}, or leave the attack out")
        self.ball, self.eps = ball(self.norm), float(self.eps)

    def __call__(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        """x_adv (B, C, H, W), detached, in the box and, unless the attack is `minimal`, in the ball.

        `x` in [0, 1] and `y` int64 (B,) are rightly classified examples, the network is frozen and in eval mode. Every
        random number comes from `rng`, so that an example's answer does not depend on its batch. With eps = 0 or
        steps = 0 the answer is `x`.
        """
        if self.eps == 0 or self.steps == 0 or len(x) == 0:
            return x.detach().clone()
        x_adv = self.perturb(target, x.detach(), y, rng).detach()
        return x_adv.clamp(0, 1) if self.minimal else self.ball.project(x.detach(), x_adv, self.eps)

    @abstractmethod
    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        """One image for each x: a misclassified one where the attack found any, else the best candidate.

        Examples that are broken should cost nothing more. Called with gradients enabled or not.
        """


class AscentAttack(Attack):
    """A `GradientAttack` as an attack on cross-entropy, with its own start, steps and step size.

    With `return_point: best` it returns the first misclassified iterate instead: the objective may be higher where the
    prediction is right.
    """

    def __init__(self, attack: GradientAttack) -> None:
        super().__init__(attack.norm, attack.eps, attack.steps)
        self.attack = copy(attack)
        if attack.return_point == "best":
            self.attack.return_point = "first"

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        return self.attack(Objective(target.logits, cross_entropy, y), x, stop=misclassified(y), rng=rng)


def wrong(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """(B,) booleans: which images are misclassified."""
    with torch.no_grad():
        return target.logits(x).argmax(dim=1) != y
