"""The input gradient of methods whose loss differentiates it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from atbench.attacks import cross_entropy


def differentiable_gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """∇_x CE(f(x), y) of each example as a row (B, D) that can be differentiated again, and the logits (B, K).

    `x` requires its gradient. The gradient is that of the sum over the batch: a mean would make it small enough to
    vanish where examples are sure.
    """
    # The quick kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        logits: Tensor = network(x)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, y).sum(), x, create_graph=True)
    return gradient.flatten(1), logits
