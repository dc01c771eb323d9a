"""Euclidean projections on an L1 ball, alone and joint with the pixel box."""

from __future__ import annotations

import torch
from torch import Tensor


def project_l1_box(x: Tensor, z: Tensor, eps: Tensor) -> Tensor:
    """argmin_v ‖v − z‖₂ subject to ‖v − x‖₁ ≤ ε and 0 ≤ v ≤ 1, for rows of (B, d); `x` in the box, `eps` (B,).

    With s = sign(z − x), a = |z − x| and h the room x has in direction s (1 − x or x), the KKT conditions give
    |v − x| = clip(a − λ, 0, h) for one λ ≥ 0 per row, the smallest with Σ clip(a − λ, 0, h) ≤ ε. That sum is piecewise
    linear and falls with λ; its kinks are the 2d values a and a − h. A bisection over the sorted kinks finds the right
    piece, and the piece is solved exactly (Croce & Hein 2021, "Mind the box", arXiv 2103.01208, Prop. 2.1).
    """
    shift = z - x
    room = torch.where(shift > 0, 1 - x, x)
    size = shift.abs()
    kinks = torch.cat([size, size - room], dim=1).clamp_min(0).sort(dim=1).values

    def length(lam: Tensor) -> Tensor:
        return torch.minimum((size - lam[:, None]).clamp_min(0), room).sum(dim=1)

    low = torch.zeros(len(x), dtype=torch.long, device=x.device)
    high = torch.full_like(low, kinks.shape[1] - 1)
    for _ in range(int(kinks.shape[1]).bit_length()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        over = length(kinks.gather(1, middle[:, None]).squeeze(1)) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    # Between two neighbouring kinks the sum is linear: its slope is minus the number of coordinates inside their own
    # range.
    start = kinks.gather(1, low[:, None]).squeeze(1)
    start = torch.where(length(start) > eps, start, torch.zeros_like(start))
    end = kinks.gather(1, high[:, None]).squeeze(1)
    at_start, at_end = length(start), length(end)
    slope = (at_start - at_end).clamp_min(torch.finfo(x.dtype).tiny)
    lam = start + (at_start - eps).clamp_min(0) / slope * (end - start)
    lam = torch.where(length(torch.zeros_like(lam)) > eps, lam, torch.zeros_like(lam))
    moved = torch.minimum((size - lam[:, None]).clamp_min(0), room)
    # Rounding may leave the sum a few ulp above ε; shrinking towards x stays in the box.
    total = moved.sum(dim=1)
    moved = (
        moved
        * torch.where(total > eps, eps / total.clamp_min(torch.finfo(x.dtype).tiny), torch.ones_like(total))[:, None]
    )
    return (x + shift.sign() * moved).clamp_(0, 1)


def project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """argmin_v ‖v − δ‖₂ subject to ‖v‖₁ ≤ ε, for rows of (B, d) (Duchi et al. 2008, fig. 1)."""
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - eps[:, None]
    count = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    support = (ordered * count > excess).sum(dim=1, keepdim=True).clamp_min(1)
    lam = (excess.gather(1, support - 1) / support).clamp_min(0)
    return delta.sign() * (size - lam).clamp_min(0)
