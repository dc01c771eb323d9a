"""Auto-PGD, untargeted and targeted (Croce & Hein 2020, arXiv 2003.01690; L1: Croce & Hein 2021, arXiv 2103.01208)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

import torch
from torch import Tensor

from atbench.attacks.base import Attack, Target
from atbench.attacks.gradient.apgd_ascent import Outcome, StepSizeSchedule, ascend
from atbench.attacks.gradient.apgd_schedule import Momentum, Sparse
from atbench.attacks.losses import Objective, dlr_towards, fewest_classes, label_objective
from atbench.attacks.norms.lp_ball import flat_norm
from atbench.config.ranges import AnyCount, Count, NotNegative, Share
from atbench.seeding import ExampleDraws

Try = tuple[tuple[int | str, ...], tuple[Tensor, ...]]


class APGD(Attack):
    """Projected gradient ascent without a step size to tune: the formulas are in `pace.py`.

    L∞ starts at x + ε·t/‖t‖_∞ with t uniform, L2 at x + ε·t/‖t‖₂ with t normal, L1 at the projection of x + t on the
    widest ball of its schedule: 30 % of the steps in the ball of 3ε, 30 % in 2ε and the rest in ε, each from the best
    point of the one before (arXiv 2103.01208, sec. 3.3). Examples that are broken are not searched any more.

    Args:
        norm, eps: the threat.
        steps: N of each restart; one forward and one backward each.
        restarts: runs from fresh starts, each for those that the ones before left unbroken. None is what AutoAttack's
            `standard` has for cross-entropy: 1, and 5 for L1.
        objective: `ce`, `dlr` (three classes at least), or another of LABEL_OBJECTIVES.
        rho: ρ, the share of steps that must raise the objective (L∞, L2).
        eot_samples: passes whose mean stands for one (expectation over transformation, for networks that answer at
            random).

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

    @torch.no_grad()
    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        result, value = x.clone(), x.new_full((len(x),), -torch.inf)
        left = torch.arange(len(x), device=x.device)
        for place, given in self.tries(target, x, y):
            objective = Objective(target.logits, self.value, y[left], *(tensor[left] for tensor in given))
            outcome = self.restart(objective, y[left], x[left], rng.take(left).at(*place))
            better = outcome.broken | (outcome.value > value[left])
            result[left[better]], value[left[better]] = outcome.x_adv[better], outcome.value[better]
            left = left[~outcome.broken]
            if len(left) == 0:
                break
        return result

    def tries(self, target: Target, x: Tensor, y: Tensor) -> Iterator[Try]:
        """For each run: the place of its random numbers, and what its objective is given besides the labels."""
        for restart in range(self.restarts):
            yield ("restart", restart), ()

    def restart(self, objective: Objective, y: Tensor, x: Tensor, rng: ExampleDraws) -> Outcome:
        """One run from one random start."""
        if self.norm != "l1":
            t = rng.uniform(x) if self.norm == "linf" else rng.normal(x)
            start = (x + self.eps * t / flat_norm(t, self.ball.p).clamp_min(1e-12)).clamp_(0, 1)
            return ascend(objective, y, x, start, self.pace(self.eps, self.steps), self.eot_samples)
        start = x + rng.normal(x)
        early = [(times * self.eps, ceil(share * self.steps)) for times, share in self.EARLY]
        last = self.steps - sum(steps for _, steps in early)
        for eps, steps in early if last > 0 else []:
            start = self.ball.project(x, start, eps)
            start = ascend(objective, y, x, start, self.pace(eps, steps), self.eot_samples, stop=False).x_adv
        start = self.ball.project(x, start, self.eps)
        return ascend(objective, y, x, start, self.pace(self.eps, last if last > 0 else self.steps), self.eot_samples)

    def pace(self, eps: float, steps: int) -> StepSizeSchedule:
        if self.norm == "l1":
            return Sparse(self.ball, eps, steps)
        return Momentum(self.ball, eps, steps, self.rho)


class TargetedAPGD(APGD):
    """APGD-T: one class after another is aimed at, from the likeliest wrong one down, with the targeted DLR

        (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2)

    (arXiv 2003.01690, sec. 4 and eq. 7). Which classes is decided by the logits at x.

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

    def tries(self, target: Target, x: Tensor, y: Tensor) -> Iterator[Try]:
        logits = target.logits(x).scatter(1, y[:, None], -torch.inf)
        classes = logits.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        for rank, aim in enumerate(classes.unbind(dim=1)):
            for restart in range(self.restarts):
                yield ("target", rank, "restart", restart), (aim,)
