"""Adversarial weight perturbation, composable with any method that makes one update of one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atbench.config.ranges import BelowOne, NotNegative

Gradients = dict[nn.Parameter, Tensor]


class WeightPerturbation:
    """AWP (Wu et al. 2020, NeurIPS, arXiv 2004.05884, alg. 1): take the gradient of the update at w + γ·d.

    d is one ascent step on the method's loss (`Method.ascent_loss`), scaled layer by layer to the weights: d_l = g_l ·
    ‖w_l‖ / ‖g_l‖ for every tensor with more than one dimension (convolutions and linear layers, not norms or biases).
    The optimizer steps on w + γ·d, so decay and momentum see it, and γ·d is subtracted afterwards.

    Source: csdongxian/AWP (AT_AWP/utils_awp.py); there the step goes through a proxy optimizer whose rate cancels in d.
    With MART on WRN-34-10, MAIR reports a collapse to chance.

    Args:
        gamma: γ, relative size of the perturbation of each layer (0.01 for AT, 0.005 for TRADES in the authors' code).
        warmup: share of training before it starts (TRADES: 9 of 200 epochs, AT: none).
    """

    def __init__(self, gamma: NotNegative, warmup: BelowOne = 0.0) -> None:
        self.gamma, self.warmup = gamma, warmup

    @contextmanager
    def around(self, model: nn.Module, ascend: Callable[[], Gradients], fraction: float) -> Iterator[None]:
        """Perturb `model` for the block. `ascend()` returns the gradients of the loss; it leaves none behind, and no
        trace in BatchNorm's running statistics, which see the second pass alone.
        """
        if fraction < self.warmup:
            yield
            return
        gradients, moves = ascend(), []
        with torch.no_grad():
            for weight in model.parameters():
                grad = gradients.get(weight)
                if weight.ndim > 1 and grad is not None:
                    move = grad * (self.gamma * weight.norm() / (grad.norm() + 1e-20))
                    weight.add_(move)
                    moves.append((weight, move))
        yield
        with torch.no_grad():
            for weight, move in moves:
                weight.sub_(move)
