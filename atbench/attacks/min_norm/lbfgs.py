"""The box-constrained L-BFGS attack of Szegedy et al. (2014, ICLR, arXiv 1312.6199, sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import cross_entropy
from atbench.attacks.min_norm.base import NearestAdversarial, others
from atbench.attacks.min_norm.box_lbfgs import TINY, minimise
from atbench.config.ranges import AnyCount, Count
from atbench.runs.seeding import ExampleDraws


@dataclass(eq=False, repr=False)
class LBFGS(Attack):
    """Distance and cross-entropy towards a wrong class l, with a line search for each example's c.

        min_{x' ∈ [0, 1]^n}  c·‖x' − x‖₂ + CE(f(x'), l)

    by L-BFGS in the box from x. The paper looks for the least c whose minimiser is classified as l; since c weighs the
    distance, the nearest one has the largest such c, and that is looked for, from half of the gradient's norm at x (its
    value for a linear network of two classes, seen from far off): c is doubled as long as its minimiser is classified
    as l, halved as long as none was, and is the geometric mean of the bounds then.

    Args:
        steps: evaluations of L-BFGS for each c; one forward and one backward pass each.
        searches: number of values of c.
        targets: the classes l tried, one after the other: those with the highest logits at `x`, at most K − 1.
        memory: pairs that L-BFGS remembers.

    Returns the nearest misclassified image of all that were evaluated, `x` where there is none.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    steps: AnyCount = 50
    searches: Count = 9
    targets: Count = 1
    memory: Count = 10

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        nearest = NearestAdversarial(self.ball, x)
        self.search(target.logits, nearest, y)
        return nearest.image

    def search(
        self,
        logits: Callable[[Tensor], Tensor],
        nearest: NearestAdversarial,
        y: Tensor,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        """Look for misclassified points in [low, high] near those of `nearest`, which may be a network's features."""
        with torch.no_grad():
            classes = others(logits(nearest.x), y, self.targets)
        for label in classes.unbind(1):
            self._towards(label, logits, nearest, y, low, high)

    def _towards(
        self,
        label: Tensor,
        logits: Callable[[Tensor], Tensor],
        nearest: NearestAdversarial,
        y: Tensor,
        low: float,
        high: float,
    ) -> None:
        x = nearest.x.flatten(1)

        def risk(point: Tensor) -> tuple[Tensor, Tensor]:
            """CE(f(x'), l) and its gradient; what is misclassified is offered."""
            with torch.enable_grad():
                point = point.view_as(nearest.x).detach().requires_grad_()
                z = logits(point)
                value = cross_entropy(z, label)
                (grad,) = torch.autograd.grad(value.sum(), point)
            nearest.offer(point.detach(), z.detach().argmax(dim=1) != y)
            return value.detach().to(x.dtype), grad.flatten(1)

        value, grad = risk(x)
        free = ((x > low) | (grad <= 0)) & ((x < high) | (grad >= 0))
        steepest = (grad * free).norm(dim=1)
        c, least, most = steepest / 2, torch.zeros_like(value), torch.full_like(value, torch.inf)
        for _ in range(self.searches):

            def objective(point: Tensor, c: Tensor = c) -> tuple[Tensor, Tensor]:
                value, grad = risk(point)
                r = point - x
                distance = r.norm(dim=1)
                return value + c * distance, grad + (c / distance.clamp_min(TINY))[:, None] * r

            # At x the distance has a kink: the slope of steepest descent there is ‖∇CE‖ − c, or x is the minimiser.
            slope = (1 - c / steepest.clamp_min(TINY)).clamp_min(0)[:, None]
            found = minimise(objective, x, value, slope * grad, low, high, self.steps, self.memory)
            with torch.no_grad():
                hit = logits(found.view_as(nearest.x)).argmax(dim=1) == label
            least, most = torch.where(hit, c, least), torch.where(hit, most, c)
            between = torch.where(least == 0, c / 2, (least * most).sqrt())
            c = torch.where(most.isinf(), 2 * c, between)
