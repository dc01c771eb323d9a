"""The fixed-step gradient attacks: PGD and its relatives are one loop in different settings.

BIM          from x itself, CE                              PGD       from a random point of the ball
CW-k, DLR    other objectives                               MI-FGSM   along a sum of gradients
EOT-PGD      the objective's mean over the network's own randomness
FGSM-RS, R+FGSM   one step from a random point
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import Candidates
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, fewest_classes, label_objective
from atbench.attacks.restarts import ascend, run_restarts
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws

#: The points that are judged: the final one, as in the papers, or every point of the path.
JUDGED = ("last", "first")


class Pgd(Attack):
    """Projected gradient ascent with a fixed step size (Madry et al. 2018, arXiv 1706.06083, sec. 2.1).

        x' ← Π_{B(x, ε) ∩ [0,1]} ( x' + rel_step_size · ε · d( ∇_{x'} objective(f(x'), y) ) )

    Args:
        steps: gradient steps of a restart.
        rel_step_size: length of a step as a share of ε; 0.25 is 2/255 at 8/255.
        start, momentum: as in `GradientAttack`; `corner` is a vertex of the L∞ ball and for that norm only.
        restarts: independent random starts, each on the examples that are still robust.
        objective: `ce`, `margin`, `cw` (the margin clamped at 50) or `dlr` (K ≥ 3 classes).
        return_point: `first`: any misclassified point of the path breaks the example, and it stops there. `last`: the
            final point alone counts, as in the papers' PGD-k; never stronger than `first` on the same path.
        eot_samples: passes over which the objective and its gradient are averaged (expectation over transformation,
            Athalye et al. 2018, arXiv 1802.00420, sec. 4.2): for randomised networks.

    Cost per restart: `steps · eot_samples` gradients, and `eot_samples` forward passes more where the final point is
    judged here. Raises ConfigError for settings that no search has, and for a network with too few classes for the
    objective.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        rel_step_size: NotNegative,
        start: str = "uniform",
        restarts: Count = 1,
        objective: str = "ce",
        momentum: NotNegative = 0.0,
        return_point: str = "first",
        eot_samples: Count = 1,
    ) -> None:
        super().__init__(norm, eps, steps)
        check(norm, start, return_point, restarts=restarts, eot_samples=eot_samples)
        self.pgd = GradientAttack(
            norm, self.eps, steps, rel_step_size * self.eps, start=start, return_point=return_point, momentum=momentum
        )
        self.restarts, self.eot_samples, self.value = restarts, eot_samples, label_objective(objective)
        self.least_classes = fewest_classes(self.value)

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        if self.restarts == 1 and self.pgd.return_point == "last":
            # No restart follows, so the evaluation's own pass judges the final point.
            return self.pgd(self.objective(target, y, rng), x, start=self.begin(x, rng))
        draws = (rng.at("restart", restart) for restart in range(self.restarts))
        return run_restarts(x, (partial(self._restart, target, x, y, each) for each in draws))

    def _restart(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws, rows: Tensor) -> Candidates:
        x, y, rng = x[rows], y[rows], rng.take(rows)
        return ascend(self.pgd, self.objective(target, y, rng), y, x, self.begin(x, rng))

    def begin(self, x: Tensor, rng: ExampleDraws) -> Tensor:
        return self.pgd.begin(x, self.eps, rng)

    def objective(self, target: Target, y: Tensor, rng: ExampleDraws) -> Objective:
        """The objective of a restart; a random one draws from `rng`."""
        if self.eot_samples > 1:
            return Averaged(target.logits, self.value, y, eot_samples=self.eot_samples)
        return Objective(target.logits, self.value, y)


class RandomFgsm(Pgd):
    """A random step, then gradient steps (one, in the papers), for L∞.

        x₁ = clip( x + rel_start_size · ε · r ),  x' = Π( x₁ + rel_step_size · ε · sign ∇_{x₁} objective )

    FGSM-RS (Wong et al. 2020, arXiv 2001.03994): r ~ U(-1, 1), sizes 1 and 1.25. R+FGSM (Tramèr et al. 2018, arXiv
    1705.07204, sec. 4.1): r = sign(N(0, I)), sizes 1/2 and 1/2, whose step does not reach the edge of the ball.

    Args:
        rel_start_size: the random step as a share of ε.
        start: law of r: `uniform`, or `corner` for the sign.
        others: those of `Pgd`.
    """

    norms = ("linf",)

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        rel_step_size: NotNegative,
        rel_start_size: NotNegative,
        start: str = "uniform",
        restarts: Count = 1,
        objective: str = "ce",
        return_point: str = "first",
    ) -> None:
        super().__init__(norm, eps, steps, rel_step_size, start, restarts, objective, return_point=return_point)
        self.pgd.rel_start_size = rel_start_size


class Averaged(Objective):
    """The mean of an objective over `eot_samples` passes of a randomised network.

    The outputs returned are mean probabilities, (B, K): their argmax is the prediction of the averaged network.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], value: Callable[..., Tensor], args: Tensor, eot_samples: Count
    ) -> None:
        super().__init__(network, value, args)
        self.eot_samples = eot_samples

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        value, probabilities, grad = torch.zeros(()), torch.zeros(()), torch.zeros_like(x_adv)
        for draw in range(self.eot_samples):
            one, logits = super().__call__(x_adv, rows, step)
            if x_adv.requires_grad:
                # One pass's graph at a time: memory does not grow with the number of draws.
                grad += torch.autograd.grad(one.sum(), x_adv)[0]
            one, one_p = one.detach(), logits.detach().softmax(dim=1)
            value, probabilities = (one, one_p) if draw == 0 else (value + one, probabilities + one_p)
        mean = value / self.eot_samples
        if x_adv.requires_grad:
            # Zero in value, the averaged gradient in slope: what the search differentiates is this line.
            mean = mean + ((x_adv - x_adv.detach()) * grad / self.eot_samples).flatten(1).sum(dim=1)
        return mean, probabilities / self.eot_samples


def check(norm: str, start: str, return_point: str, **counts: int) -> None:
    """Raise ConfigError for settings that no attack of this family has."""
    if return_point not in JUDGED:
        why = "an evaluation judges the last point, or every one until the first wrong one"
        raise ConfigError("attack.return_point", return_point, why, f"use {' or '.join(JUDGED)}")
    if start == "corner" and norm != "linf":
        raise ConfigError("attack.start", start, f"a vertex of the L∞ ball is no start for {norm}", "use uniform")
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"attack.{name}", value, f"{name} must be ≥ 1", "use 1 or more")
