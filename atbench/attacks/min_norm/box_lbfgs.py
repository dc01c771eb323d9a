"""L-BFGS in a box, on a batch of independent problems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Points (B, D) → their values (B,) and gradients (B, D).
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]

ARMIJO = 1e-4  # least decrease of an accepted step, as a share of the linear prediction
SHORTEST = 1e-7  # shares of a direction that are not tried any more
GROWTH = (
    10.0  # longest direction, in lengths of the last step: where the curvature is near 0, L-BFGS asks for any length
)
FLAT = 1e-5  # largest component of the gradient at a minimiser (pgtol of L-BFGS-B, Zhu et al. 1997)
TINY = 1e-12


class Curvature:
    """The last `memory` pairs of each problem: a step s, and the change y of the gradient in it."""

    def __init__(self, x: Tensor, memory: int) -> None:
        self.steps = x.new_zeros(memory, *x.shape)
        self.changes = torch.zeros_like(self.steps)

    def add(self, step: Tensor, change: Tensor, accepted: Tensor) -> None:
        """Remember a pair where it was `accepted` (B,) and has positive curvature; the oldest one is dropped."""
        keep = (accepted & ((step * change).sum(dim=1) > TINY * change.square().sum(dim=1)))[:, None]
        self.steps = torch.where(keep, torch.cat([self.steps[1:], step[None]]), self.steps)
        self.changes = torch.where(keep, torch.cat([self.changes[1:], change[None]]), self.changes)

    def direction(self, grad: Tensor, free: Tensor) -> Tensor:
        """−H·∇ in the `free` variables (B, D), 0 in the others, by the two-loop recursion (Nocedal 1980); without a
        pair −∇ / ‖∇‖₂.
        """
        q = grad * free
        length = q.norm(dim=1, keepdim=True).clamp_min(TINY)
        scale = 1 / length
        pairs = []
        for s, y in zip(self.steps * free, self.changes * free, strict=True):
            product = (s * y).sum(dim=1, keepdim=True)
            valid = product > TINY * y.square().sum(dim=1, keepdim=True)
            scale = torch.where(valid, product / y.square().sum(dim=1, keepdim=True).clamp_min(TINY**2), scale)
            pairs.append((s, y, torch.where(valid, 1 / product, 0.0)))
        factors = []
        for s, y, rho in reversed(pairs):
            factors.append(rho * (s * q).sum(dim=1, keepdim=True))
            q = q - factors[-1] * y
        r = scale * q
        for (s, y, rho), factor in zip(pairs, reversed(factors), strict=True):
            r = r + s * (factor - rho * (y * r).sum(dim=1, keepdim=True))
        return -r


def minimise(
    evaluate: Evaluate,
    x: Tensor,
    value: Tensor,
    grad: Tensor,
    low: float,
    high: float,
    steps: int,
    memory: int,
) -> Tensor:
    """Minimise in the box [low, high] from `x` (B, D), whose value and gradient are given. Returns the last points.

    Projected quasi-Newton steps (Bertsekas 1982): variables at a bound that the gradient pushes against stay there, the
    others follow L-BFGS, and the step is projected on the box and halved until the value falls enough. Each of `steps`
    evaluates one point of every problem, whether it is accepted or not. Problems do not see each other: one that is
    done keeps its point.
    """
    curvature, length, longest = Curvature(x, memory), torch.ones_like(value), torch.ones_like(value)
    live = torch.ones_like(value, dtype=torch.bool)
    for _ in range(steps):
        free = ((x > low) | (grad <= 0)) & ((x < high) | (grad >= 0))
        live = live & ((grad * free).abs().amax(dim=1) > FLAT) & (length > SHORTEST)
        if not bool(live.any()):
            break
        direction = curvature.direction(grad, free)
        scale = length * (longest / direction.norm(dim=1).clamp_min(TINY)).clamp_max(1)
        trial = (x + scale[:, None] * direction).clamp(low, high)
        new_value, new_grad = evaluate(torch.where(live[:, None], trial, x))
        step = trial - x
        accepted = live & (new_value <= value + ARMIJO * (grad * step).sum(dim=1))
        curvature.add(step, new_grad - grad, accepted)
        wide = accepted[:, None]
        x, grad = torch.where(wide, trial, x), torch.where(wide, new_grad, grad)
        value, length = torch.where(accepted, new_value, value), torch.where(accepted, 1.0, length / 2)
        longest = torch.where(accepted, GROWTH * step.norm(dim=1), longest)
    return x
