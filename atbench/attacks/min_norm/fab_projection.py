"""The nearest point of a hyperplane within the pixel box, in three norms (Croce & Hein 2020, FAB, sec. 2.1 and app. A).

    min ‖d‖_p   subject to   ⟨w, d⟩ = c   and   0 ≤ t + d ≤ 1

Every solution moves a pixel i by some m_i ≥ 0 in the direction sign(c·w_i), at most by the room h_i that the box leaves
there, and gains |w_i|·m_i. What is left is how much each one moves. Where even m = h does not gain |c|, the hyperplane
is out of reach within the box, and the answer is that corner: the best that can be done towards it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_hyperplane(t: Tensor, w: Tensor, c: Tensor, p: float) -> Tensor:
    """d (B, n), the least change in the p-norm, p ∈ {1, 2, ∞}, of points `t` (B, n) in the box with ⟨w, d⟩ = `c` (B,).

    Pixels that w ignores stay. Exact up to rounding, in all three norms.
    """
    direction = torch.where(c[:, None] < 0, -w, w).sign()
    room = torch.where(direction > 0, 1 - t, t) * direction.abs()
    gain, need = w.abs(), c.abs()
    if p == 1:
        return direction * _greedily(gain, room, need)
    rate = torch.ones_like(gain) if p == float("inf") else gain
    return direction * _evenly(gain, rate, room, need)


def _evenly(gain: Tensor, rate: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """m_i = min(λ·rate_i, room_i) with Σ gain_i·m_i = need: L∞ with rate 1, L2 with rate |w_i| (the KKT conditions).

    The sum is concave and piecewise linear in λ. Newton's method from 0 therefore never passes the solution, and stands
    on it once the set of pixels that still have room does: after at most n + 1 rounds, in practice after a handful,
    each much cheaper than a sort.
    """
    kink = torch.where(room > 0, room / rate, torch.zeros_like(room))
    full, slope = gain * room, gain * rate
    level = torch.zeros_like(need)
    free = kink > level[:, None]
    for _ in range(gain.shape[1] + 1):
        free = kink > level[:, None]
        rise = torch.where(free, slope, 0).sum(dim=1)
        left = need - torch.where(free, 0, full).sum(dim=1)
        ahead = torch.maximum(level, torch.where(rise > 0, left / rise, torch.inf))
        # Without a need nothing moves, whatever the slope.
        ahead = torch.where(need > 0, ahead, torch.zeros_like(ahead))
        if torch.equal(ahead, level):
            break
        level = ahead
    return torch.where(free, level[:, None] * rate, room)


def _greedily(gain: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """L1: the pixels that gain most per unit of change move first, each as far as it can, until the need is met."""
    order = gain.argsort(dim=1, descending=True)
    gain, room = gain.gather(1, order), room.gather(1, order)
    full = gain * room
    before = full.cumsum(dim=1) - full
    moved = torch.minimum((need[:, None] - before).clamp_min(0) / gain.clamp_min(torch.finfo(gain.dtype).tiny), room)
    return torch.zeros_like(moved).scatter_(1, order, moved)
