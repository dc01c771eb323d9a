"""Auto-PGD, untargeted and targeted (Croce & Hein 2020, arXiv 2003.01690; L1: Croce & Hein 2021, arXiv 2103.01208)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil

import torch
from torch import Tensor

from atbench.attacks.ascent.loop import Ascent, Candidates, Stepper, misclassified
from atbench.attacks.base import Attack, Target
from atbench.attacks.gradient.apgd_schedule import APGDSteps, SparseAPGDSteps
from atbench.attacks.losses import Objective, dlr_towards, fewest_classes, label_objective
from atbench.attacks.min_norm.base import others
from atbench.attacks.norms.lp_ball import flat_norm
from atbench.attacks.restarts import run_restarts
from atbench.config.ranges import AnyCount, Count, NotNegative, Share
from atbench.runs.seeding import ExampleDraws

Key = tuple[int | str, ...]


class APGD(Attack):
    """Projected gradient ascent with step sizes of its own; formulas in `apgd_schedule.py`.

    L∞ starts at x + ε·t/‖t‖_∞ with t uniform, L2 at x + ε·t/‖t‖₂ with t normal, L1 at the projection of x + t on the
    widest ball of its schedule: 30 % of the steps in the ball of 3ε, 30 % in 2ε and the rest in ε, each from the best
    point of the one before (arXiv 2103.01208, sec. 3.3). Broken examples are not searched further.

    Args:
        norm, eps: the threat.
        steps: N of each restart; one forward and one backward each.
        restarts: runs from independent starts, each on the examples that are still robust. None is what AutoAttack's
            `standard` has for cross-entropy: 1, and 5 for L1.
        objective: `ce`, `dlr` (three classes at least), or another of LABEL_OBJECTIVES.
        rho: ρ, the share of steps that must raise the objective (L∞, L2).
        eot_samples: passes over which objective, logits and gradient are averaged (expectation over transformation, for
            randomised networks).

    Raises ConfigError for an unknown objective, and for DLR with fewer than three classes.
    """

    #: ε in multiples and shares of the steps, for L1 (arXiv 2103.01208, sec. 3.3; autoattack/autopgd_base.py).
    EARLY = ((3.0, 0.3), (2.0, 0.3))

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 100,
        restarts: Count | None = None,
        objective: str = "ce",
        rho: Share = 0.75,
        eot_samples: Count = 1,
    ) -> None:
        super().__init__(norm, eps, steps)
        self.value: Callable[..., Tensor] = label_objective(objective)
        self.least_classes = fewest_classes(self.value)
        self.restarts = restarts or (5 if norm == "l1" and objective == "ce" else 1)
        self.rho, self.eot_samples = rho, eot_samples

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        def restart(key: Key, args: tuple[Tensor, ...], rows: Tensor) -> Candidates:
            objective = Objective(target.logits, self.value, (y[rows], *(tensor[rows] for tensor in args)))
            return self.restart(objective, y[rows], x[rows], rng.take(rows).at(*key))

        return run_restarts(x, (partial(restart, key, args) for key, args in self.restart_args(target, x, y)))

    def restart_args(self, target: Target, x: Tensor, y: Tensor) -> Iterator[tuple[Key, tuple[Tensor, ...]]]:
        """For each restart: the key of its random numbers, and the objective's arguments besides the labels."""
        for restart in range(self.restarts):
            yield ("restart", restart), ()

    def restart(self, objective: Objective, y: Tensor, x: Tensor, rng: ExampleDraws) -> Candidates:
        if self.norm != "l1":
            t = rng.uniform(x) if self.norm == "linf" else rng.normal(x)
            start = (x + self.eps * t / flat_norm(t, self.ball.p).clamp_min(1e-12)).clamp_(0, 1)
            return self._ascent(objective, x, self.eps, self.steps, y).run(start)
        start = x + rng.normal(x)
        early = [(times * self.eps, ceil(share * self.steps)) for times, share in self.EARLY]
        last = self.steps - sum(steps for _, steps in early)
        for eps, steps in early if last > 0 else []:
            start = self.ball.project(x, start, eps)
            start = self._ascent(objective, x, eps, steps).run(start).x_adv
        start = self.ball.project(x, start, self.eps)
        return self._ascent(objective, x, self.eps, last if last > 0 else self.steps, y).run(start)

    def _ascent(self, objective: Objective, x: Tensor, eps: float, steps: int, y: Tensor | None = None) -> Ascent:
        """A run that stops where an example is misclassified, or without labels `y` only looks for the best point."""
        l1 = self.norm == "l1"
        stepper: Stepper = SparseAPGDSteps(eps, steps) if l1 else APGDSteps(self.ball, eps, steps, self.rho)
        stop = None if y is None else misclassified(y)
        return Ascent(objective, x, self.ball, eps, stepper, steps, stop, "first_or_best", self.eot_samples)


class TargetedAPGD(APGD):
    """APGD-T: towards one class after another, from the likeliest wrong one down, with the targeted DLR

        (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2)

    (arXiv 2003.01690, sec. 4 and eq. 7). Classes are ranked by the logits at x.

    Args: those of `APGD` but the objective, and `targets`: how many classes, K − 1 at most. None is what AutoAttack
    has: 9, and 5 for L1. `restarts` are per target.

    Raises ConfigError for a network of fewer than four classes.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 100,
        restarts: Count = 1,
        targets: Count | None = None,
        rho: Share = 0.75,
        eot_samples: Count = 1,
    ) -> None:
        super().__init__(norm, eps, steps, restarts, rho=rho, eot_samples=eot_samples)
        self.value, self.targets = dlr_towards, targets or (5 if norm == "l1" else 9)
        self.least_classes = fewest_classes(self.value)

    def restart_args(self, target: Target, x: Tensor, y: Tensor) -> Iterator[tuple[Key, tuple[Tensor, ...]]]:
        with torch.no_grad():
            logits = target.logits(x)
        for rank, t in enumerate(others(logits, y, self.targets).unbind(dim=1)):
            for restart in range(self.restarts):
                yield ("target", rank, "restart", restart), (t,)
