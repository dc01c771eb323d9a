"""The most confident misclassification in the ball, against networks that may reject."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import State
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, confidence
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws


class MaxConfidence(Attack):
    """max_{k≠y} p_k(x') by steps that are rejected where it falls, from x itself and from random points of the ball
    (Stutz et al. 2020, ICML, arXiv 1910.06259, sec. 5).

    An attack that only wants a wrong answer stops where a network that rejects is least sure; this one goes on, and
    returns the misclassified iterate of highest confidence over all restarts. It also runs on images
    that are wrong already.

    The authors step along a running mean of directions, up to 1,000 times ε/30 with a factor of 1.1, from up to 50
    starts. Here every second restart takes plain steps: on a CCAT network each kind finds confident errors that the
    other does not (digits, 100 images, 2 restarts: 30 and 25 % above the threshold; 35 % by four such settings). In L1
    all do: a mean of sparse steps spends itself at the box (standard network, digits, ε = 4: 28 against 100 % broken).

    Args:
        steps: gradient steps of a restart; one forward pass more evaluates its last point.
        restarts: the first from x, the others from random points.
        rel_step_size: the step that each example begins with, as a share of ε; halved for every further restart, down
            to an eighth: what a fine valley hides from long steps, short ones find.
        momentum: of the running mean. backtrack: as in `GradientAttack`.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        restarts: Count,
        rel_step_size: NotNegative,
        momentum: NotNegative = 0.9,
        backtrack: float = 1.1,
    ) -> None:
        super().__init__(norm, eps, steps)
        if restarts < 1:
            raise ConfigError("attack.restarts", restarts, "restarts must be ≥ 1", "use at least 1")

        def attack(restart: int) -> GradientAttack:
            size, plain = rel_step_size * self.eps / 2 ** min(restart, 3), norm == "l1" or restart % 2 == 1
            kind: dict[str, Any] = {"rule": "steepest"} if plain else {"rule": "averaged", "momentum": momentum}
            start = "uniform" if restart else "zero"
            return GradientAttack(norm, self.eps, steps, size, start, return_point="best", backtrack=backtrack, **kind)

        self.attacks = [attack(restart) for restart in range(restarts)]

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        best, objective = _Best(x, y), Objective(target.logits, confidence, y)
        for restart, pgd in enumerate(self.attacks):
            start = self.ball.project(x, pgd.begin(x, self.eps, rng.at("restart", restart)), self.eps)
            pgd(objective, x, start=start, stop=best.update)
        return best.x_adv


class _Best:
    """The misclassified point of highest confidence of each example or, as long as there is none, the point of the
    highest confidence in a wrong class.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.y, self.x_adv = y, x.clone()
        self.wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def update(self, state: State) -> Tensor:
        """A stop rule that stops nothing, so that `state` always holds the whole batch."""
        wrong = state.outputs.argmax(dim=1) != self.y
        better = (wrong & ~self.wrong) | ((wrong == self.wrong) & (state.value > self.value))
        self.x_adv = torch.where(better.view(-1, *[1] * (self.x_adv.ndim - 1)), state.x_adv, self.x_adv)
        self.value = torch.where(better, state.value.to(self.value.dtype), self.value)
        self.wrong |= wrong
        return torch.zeros_like(wrong)
