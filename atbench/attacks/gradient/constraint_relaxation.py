"""Constraint relaxation (CR) attack of FastAT Benchmark: steps through a larger ball, then inside the ball."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import State
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, cross_entropy, margin, towards
from atbench.attacks.min_norm.base import others
from atbench.attacks.restarts import AttackStage, RobustTracker
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws

FLOOR = 0.05  # of the scale, which halves from cycle to cycle: 0.5, 0.25, 0.125, 0.0625, 0.05
NEAR = 0.05  # a margin below which an example is worth another pass at this target
Draws = ExampleDraws


class ConstraintRelaxation(Attack):
    """CR attack, L∞: PGD on the cross-entropy, then cycles towards the likeliest classes through a ball that is too
    large, then the same again for pairs of example and class that came close.

        A: `first_steps` steps of ε/2 on −log p_y from a uniform point; ranks the wrong classes by logit where it ends
        B: for each of the first `targets` classes t of that rank, from a uniform point, `cycles` times on z_t − z_y:
             s ← max(s/2, 0.05), s = 1 at first; all steps of the cycle are of s·ε
             a third of `steps` in the ball of radius ε(1 + s), success judged on copies projected to ε,
             a third in the ball of ε, after which examples with z_y − z_t > s give this class up,
             the last third in the ball of ε, from the point projected to ε(1 − s) plus U(−sε, sε)
        C: `restarts` further passes of B, for pairs that reached a margin below 0.05

    Misclassified examples are not searched further. Strong for its cost on networks with honest gradients, and weaker
    than AutoAttack on masked ones: it has no part without gradients.

    Args:
        steps: of one cycle; 150 gradients are 5 cycles of 30.
        targets: number of classes; None is ⌈ln K⌉ of K classes (the code: 3, 5, 6 for 10, 100, 200).
        reset_scale: the code means to halve the step in the middle of A and resets the scale at every step, so that
            one step alone is halved. True does that, False halves all from there on.

    Source: fzjcdt/FastAT_Benchmark, CRAttack (Pan & Yao 2026, arXiv 2604.22853).
    """

    norms = ("linf",)

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 30,
        cycles: Count = 5,
        targets: Count | None = None,
        restarts: Count = 4,
        first_steps: AnyCount = 10,
        reset_scale: bool = True,
    ) -> None:
        super().__init__(norm, eps, steps)
        if targets is not None and targets < 1:
            raise ConfigError("attack.targets", targets, "targets must be ≥ 1", "use 1 or more, or null")
        self.cycles, self.targets, self.restarts = cycles, targets, restarts
        self.first_steps, self.reset_scale = first_steps, reset_scale

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        tracker = RobustTracker(target, x, y)
        pgd = GradientAttack(self.norm, self.eps, self.steps, self.eps, start="uniform")
        rows = tracker.rows()
        start = pgd.begin(x, self.eps, rng.at("first"))
        rows, logits = tracker.run_stages(pgd, self._first(target, y), rows, start)
        if len(rows) == 0:
            return tracker.x_adv
        count = self.count(logits.shape[1])
        rank = torch.zeros(len(x), count, dtype=torch.long, device=x.device)
        rank[rows] = others(logits, y[rows], count)
        near = torch.zeros(len(x), count, dtype=torch.bool, device=x.device)
        for restart in range(1 + self.restarts):
            for column in range(count):
                rows = tracker.rows() if restart == 0 else (~tracker.broken & near[:, column]).nonzero().squeeze(1)
                if len(rows):
                    targeted = _TargetedPass(self, pgd, tracker, rank[:, column], rng.at("turn", restart, column))
                    targeted.run(rows)
                    if restart == 0:
                        near[:, column] = targeted.near
        return tracker.x_adv

    def count(self, classes: int) -> int:
        """Number of target classes, of the K − 1 wrong ones."""
        return min(ceil(log(classes)) if self.targets is None else self.targets, classes - 1)

    def _first(self, target: Target, y: Tensor) -> Iterator[AttackStage]:
        half, size = self.first_steps // 2, self.eps / 2
        halved = min(1, self.first_steps - half) if self.reset_scale else self.first_steps - half
        for steps, length in ((half, size), (halved, size / 2), (self.first_steps - half - halved, size)):
            yield AttackStage(lambda rows: Objective(target.logits, cross_entropy, y[rows]), steps, length)


class _TargetedPass:
    """One pass of stage B towards one class an example. `near`: (B,), whether a margin below NEAR was reached."""

    def __init__(
        self, attack: ConstraintRelaxation, pgd: GradientAttack, tracker: RobustTracker, t: Tensor, rng: Draws
    ) -> None:
        self.pgd, self.tracker, self.t, self.rng = pgd, tracker, t, rng
        self.x, self.eps, self.ball, self.cycles = tracker.x, attack.eps, attack.ball, attack.cycles
        self.relaxed = self.strict = attack.steps // 3
        self.rest = attack.steps - self.relaxed - self.strict
        self.near = torch.zeros_like(tracker.broken)
        self.gap = tracker.value.new_zeros(len(t))  # z_y − z_t at the last point evaluated

    def run(self, rows: Tensor) -> None:
        x_adv = self.pgd.begin(self.x[rows], self.eps, self.rng.at("start").take(rows))
        scale = 1.0
        for cycle in range(self.cycles):
            scale = max(scale / 2, FLOOR)
            rows, x_adv = self._stage(rows, x_adv, self.relaxed, scale, self.eps * (1 + scale), outside=self.relaxed)
            rows, x_adv = self._stage(rows, x_adv, self.strict, scale, self.eps, outside=1)
            if self.strict:
                close = self.gap[rows] <= scale
                rows, x_adv = rows[close], x_adv[close]
            if len(rows) == 0:
                return
            noise = self.rng.at("cycle", cycle).take(rows).uniform(x_adv) * (scale * self.eps)
            inner = self.ball.project(self.x[rows], x_adv, self.eps * (1 - scale))
            rows, x_adv = self._stage(rows, (inner + noise).clamp_(0, 1), self.rest, scale, self.eps, outside=0)
            if len(rows) == 0:
                return
        self.tracker.evaluate(rows, x_adv)

    def _stage(
        self, rows: Tensor, x_adv: Tensor, steps: int, scale: float, radius: float, outside: int
    ) -> tuple[Tensor, Tensor]:
        """Steps on z_t − z_y, the first `outside` of which may start outside ε; the rows that are still robust."""
        if steps == 0 or len(rows) == 0:
            return rows, x_adv

        def stop(state: State) -> Tensor:
            return self._judge(rows[state.rows], state, state.step < outside)

        objective = Objective(self.tracker.target.logits, towards, (self.tracker.y[rows], self.t[rows]))
        x_adv = self.pgd(
            objective,
            self.x[rows],
            start=x_adv,
            eps=radius,
            step_size=scale * self.eps,
            steps=steps,
            stop=stop,
        )
        return self.tracker.drop_broken(rows, x_adv)

    def _judge(self, rows: Tensor, state: State, outside: bool) -> Tensor:
        """Judge a point of the ball by its margin to t, and one outside by its projection's margin to any class."""
        x_adv, logits, gap = state.x_adv, state.outputs, -state.value
        self.gap[rows] = gap
        if outside:
            x_adv = self.ball.project(self.x[rows], x_adv, self.eps)
            with torch.no_grad():
                logits = self.tracker.target.logits(x_adv)
            gap = -margin(logits, self.tracker.y[rows])
        self.near[rows] = self.near[rows] | (gap < NEAR)
        return self.tracker.update(rows, x_adv, logits)
