"""Margin decomposition (MD): one term of the margin, then both, where one term's gradient hides the other's."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, margin
from atbench.attacks.restarts import AttackStage, RobustTracker
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import refuse_unknown
from atbench.runs.seeding import ExampleDraws

SCHEDULES = ("cosine", "constant")
Value = Callable[[Tensor, Tensor], Tensor]


def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    """z_y, (B,)."""
    return logits.gather(1, y[:, None]).squeeze(1)


def less_true(logits: Tensor, y: Tensor) -> Tensor:
    """−z_y, (B,)."""
    return -true_logit(logits, y)


def best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k, (B,)."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)


class MarginDecomposition(Attack):
    """MD: a first stage on one term of the margin, a second one on the margin max_{k≠y} z_k − z_y.

    The first stage maximises −z_y in restarts 0, 2, … and max_{k≠y} z_k in restarts 1, 3, …, and takes half of the
    steps. Every restart begins at a uniform point of the ball and runs on the examples that are still robust;
    any misclassified iterate counts.

    Args:
        steps: of both stages together.
        restarts: 2 is one search for each term.
        schedule: `cosine` (the code): step j of a stage of n is rel_first_step·ε · (1 + cos(π j / n)) / 2, in both
            stages; `constant`: rel_first_step·ε in the first, rel_step_size·ε in the second stage (what the
            code's options say, and its loop does not use).
        rel_first_step, rel_step_size: step sizes as shares of ε; `cosine` needs the first one only.
        retreat: so many steps of the first stage raise z_y instead (the code: 1).

    Source: Jiang et al. 2020, arXiv 2006.13726; HanxunH/MDAttack, attacks/MD.py, whose cosine runs one step
    late: j − 1 for our j.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 50,
        restarts: Count = 2,
        schedule: str = "cosine",
        rel_first_step: NotNegative = 2.0,
        rel_step_size: NotNegative = 0.25,
        retreat: AnyCount = 1,
    ) -> None:
        super().__init__(norm, eps, steps)
        refuse_unknown("attack.schedule", schedule, SCHEDULES, "schedule")
        self.restarts, self.schedule, self.retreat = restarts, schedule, retreat
        self.first_step, self.step_size = rel_first_step * self.eps, rel_step_size * self.eps

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        tracker = RobustTracker(target, x, y)
        pgd = GradientAttack(self.norm, self.eps, self.steps, self.step_size, start="uniform")
        for restart, rows in tracker.restarts(self.restarts):
            start = pgd.begin(x[rows], self.eps, rng.at("restart", restart).take(rows))
            term = best_wrong if restart % 2 else less_true
            tracker.run_stages(pgd, self.stages(target, y, term), rows, start)
        return tracker.x_adv

    def stages(self, target: Target, y: Tensor, term: Value) -> list[AttackStage]:
        """Every step as a stage of its own: the sizes differ."""

        def stage(value: Value, size: float) -> AttackStage:
            return AttackStage(lambda rows: Objective(target.logits, value, y[rows]), 1, size)

        half = self.steps // 2
        first = [stage(true_logit if j < self.retreat else term, self._size(j, half, True)) for j in range(half)]
        return first + [stage(margin, self._size(j, self.steps - half, False)) for j in range(self.steps - half)]

    def _size(self, j: int, n: int, first: bool) -> float:
        if self.schedule == "cosine":
            return self.first_step * (1 + cos(pi * j / n)) / 2
        return self.first_step if first else self.step_size
