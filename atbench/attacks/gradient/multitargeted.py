"""Targeted PGD as an untargeted attack: towards one wrong class after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import Candidates
from atbench.attacks.base import Attack, Target
from atbench.attacks.gradient.pgd import check
from atbench.attacks.losses import Objective, dlr_towards, fewest_classes, likelihood, towards
from atbench.attacks.min_norm.base import others
from atbench.attacks.restarts import ascend, run_restarts
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import refuse_unknown
from atbench.runs.seeding import ExampleDraws

#: Objectives of (logits, y, t); the likelihood of t ignores y.
OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "ce": lambda logits, y, t: likelihood(logits, t),
    "margin": towards,
    "dlr": dlr_towards,
}
RULES = ("top", "least", "random")


class Targeted(Attack):
    """PGD towards wrong classes t, one search a class, each on the examples that are still robust.

        x' ← Π_{B(x, ε) ∩ [0,1]} ( x' + rel_step_size · ε · d( ∇_{x'} objective(f(x'), y, t) ) )

    With `objective=margin`, z_t − z_y, this is MultiTargeted (Gowal et al. 2019, arXiv 1910.09338, sec. 3); with `ce`
    the targeted PGD of Kurakin et al. 2017 (arXiv 1611.01236, sec. 2.1), whose target is the least likely class.
    Any wrong prediction is a success, whatever the target was.

    Args:
        targets: number of target classes, at most K − 1.
        rule: `top`: the wrong classes of the highest clean logits, in that order; `least`: of the lowest; `random`.
        restarts: random starts of every target. All targets come once before the second restart of any.
        objective: `margin`; `ce`: log softmax(z)_t; `dlr`: (z_t − z_y) / (z_(1) − (z_(3) + z_(4))/2), K ≥ 4.
        others: those of `Pgd`.

    Cost: a forward pass, then up to `targets · restarts · steps` gradients. Raises ConfigError for a setting that does
    not exist and for a network with too few classes.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        rel_step_size: NotNegative,
        targets: Count,
        rule: str = "top",
        start: str = "uniform",
        restarts: Count = 1,
        objective: str = "margin",
        momentum: NotNegative = 0.0,
        return_point: str = "first",
    ) -> None:
        super().__init__(norm, eps, steps)
        refuse_unknown("attack.objective", objective, list(OBJECTIVES))
        refuse_unknown("attack.rule", rule, RULES)
        check(norm, start, return_point, restarts=restarts, targets=targets)
        self.pgd = GradientAttack(
            norm, self.eps, steps, rel_step_size * self.eps, start=start, return_point=return_point, momentum=momentum
        )
        self.targets, self.rule, self.restarts, self.value = targets, rule, restarts, OBJECTIVES[objective]
        self.least_classes = fewest_classes(self.value)

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        with torch.no_grad():
            logits = target.logits(x)
        order = self.order(logits, y, rng)
        searches = [
            partial(self._restart, target, x, y, order[:, rank], rng.at("restart", restart, "target", rank))
            for restart in range(self.restarts)
            for rank in range(order.shape[1])
        ]
        return run_restarts(x, searches)

    def order(self, logits: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        """(B, min(targets, K − 1)) int64: the target classes of each example, by clean logits (B, K)."""
        score = {"top": logits, "least": -logits}[self.rule] if self.rule != "random" else rng.uniform(logits)
        return others(score, y, self.targets)

    def _restart(
        self, target: Target, x: Tensor, y: Tensor, towards: Tensor, rng: ExampleDraws, rows: Tensor
    ) -> Candidates:
        x, y, rng = x[rows], y[rows], rng.take(rows)
        objective = Objective(target.logits, self.value, (y, towards[rows]))
        return ascend(self.pgd, objective, y, x, self.pgd.begin(x, self.eps, rng))
