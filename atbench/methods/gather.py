"""Rows of all processes, with the gradient to one's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GatherRows(torch.autograd.Function):
    """(b, ...) → (world·b, ...), the rows of all processes in the order of the joint batch.

    Every process computes the same loss L of the joint rows, and the backward pass adds up the gradients of all of
    them: world · ∂L/∂(own rows). DistributedDataParallel averages over processes, so that the update is the one of a
    single process with the joint batch.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of the joint batch, constants."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
