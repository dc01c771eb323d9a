"""Shared parts of minimum-norm attacks: the nearest misclassified image so far, and linearised boundaries."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.attacks.losses import towards
from atbench.attacks.norms.lp_ball import Ball

TINY = 1e-12
ALL = slice(None)


def wide(value: Tensor, x: Tensor) -> Tensor:
    """One value per example (B,), shaped to broadcast over the pixels of `x`."""
    return value.view(-1, *[1] * (x.ndim - 1))


class NearestAdversarial:
    """The nearest misclassified image of each example so far; `x` at an infinite distance where there is none."""

    def __init__(self, ball: Ball, x: Tensor) -> None:
        self.ball, self.x, self.image = ball, x, x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def offer(self, x_adv: Tensor, wrong: Tensor, rows: Tensor | slice = ALL) -> None:
        """Keep those of `x_adv`, images of the examples `rows`, that are `wrong` and nearer than the nearest so far."""
        distance, before = self.ball.norm(x_adv - self.x[rows]), self.distance[rows]
        better = wrong & (distance < before)
        self.distance[rows] = torch.where(better, distance, before)
        self.image[rows] = torch.where(wide(better, x_adv), x_adv, self.image[rows])


def others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """(B, min(count, K − 1)): the classes other than `y` with the highest logits, in that order."""
    rivals = logits.scatter(1, y[:, None], -torch.inf)
    return rivals.topk(min(count, logits.shape[1] - 1), dim=1).indices


def dual_norm(w: Tensor, p: float) -> Tensor:
    """(B,): ‖w‖_q with 1/p + 1/q = 1, the most by which a change of p-norm 1 moves ⟨w, ·⟩."""
    q = {1.0: float("inf"), 2.0: 2.0, float("inf"): 1.0}[p]
    return w.flatten(1).norm(p=q, dim=1)


def nearest_boundary(x: Tensor, logits: Tensor, y: Tensor, classes: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The linearised boundary nearest to `x` in the p-norm, towards any of `classes` (B, n).

    With f_t = z_t − z_y and w_t = ∇f_t at x, the boundary of class t is the hyperplane f_t + ⟨w_t, x' − x⟩ = 0, at
    distance |f_t| / ‖w_t‖_q. Returns f (B,) and w (as x) of the nearest. `logits` (B, K) were computed from `x` with a
    graph; there is one backward pass a class, and no more than two gradients are in memory.
    """
    gap, normal, distance = logits[:, 0], x, logits[:, 0]
    columns = classes.unbind(1)
    for number, column in enumerate(columns):
        value = towards(logits, y, column)
        slope = torch.autograd.grad(value.sum(), x, retain_graph=number < len(columns) - 1)[0]
        far = value.detach().abs() / (dual_norm(slope, p) + TINY)
        if number == 0:
            gap, normal, distance = value.detach(), slope, far
            continue
        nearer = far < distance
        gap, distance = torch.where(nearer, value.detach(), gap), torch.where(nearer, far, distance)
        normal = torch.where(wide(nearer, slope), slope, normal)
    return gap, normal
