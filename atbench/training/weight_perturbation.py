"""Adversarial weight perturbation, composable with any method that makes one update of one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atbench.config.ranges import BelowOne, Count, NotNegative
from atbench.errors import refuse_unknown

Gradients = dict[nn.Parameter, Tensor]
SCALES = ("layer", "network")


class WeightPerturbation:
    """AWP (Wu et al. 2020, NeurIPS, arXiv 2004.05884, alg. 1): take the gradient of the update at w + γ·d.

    d is one ascent step on the method's loss (`Method.ascent_loss`), scaled layer by layer to the weights: d_l = g_l ·
    ‖w_l‖ / ‖g_l‖ for every tensor with more than one dimension (convolutions and linear layers, not norms or biases).
    The optimizer steps on w + γ·d, so decay and momentum see it, and γ·d is subtracted afterwards.

    Source: csdongxian/AWP (AT_AWP/utils_awp.py); there the step goes through a proxy optimizer whose rate cancels in d.
    With MART on WRN-34-10, MAIR reports a collapse to chance. Several steps: g is the sum of the gradients, each at the
    weights that the ones before it led to. What is climbed is `Method.ascent_loss`.

    Args:
        gamma: γ, relative size of the perturbation of each layer (0.01 for AT, 0.005 for TRADES in the authors' code).
        warmup: share of training before it starts (TRADES: 9 of 200 epochs, AT: none).
        steps: gradients that make d; a forward and a backward pass each.
        scale: of d, `layer`: to the norm of each tensor, or `network`: to that of all of them together.
    """

    def __init__(self, gamma: NotNegative, warmup: BelowOne = 0.0, steps: Count = 1, scale: str = "layer") -> None:
        refuse_unknown("plus.awp.scale", scale, SCALES)
        self.gamma, self.warmup, self.steps, self.scale = gamma, warmup, steps, scale

    @contextmanager
    def around(self, model: nn.Module, ascend: Callable[[], Gradients], fraction: float) -> Iterator[None]:
        """Perturb `model` for the block. `ascend()` returns the gradients of the loss; it leaves none behind, and no
        trace in BatchNorm's running statistics, which see the second pass alone.
        """
        if fraction < self.warmup:
            yield
            return
        norms = {weight: weight.detach().norm() for weight in model.parameters() if weight.ndim > 1}
        way: Gradients = {}
        moves: Gradients = {}
        for _ in range(self.steps):
            for weight, grad in ascend().items():
                if weight in norms:
                    way[weight] = way[weight] + grad if weight in way else grad
            ahead = self._scaled(way, norms)
            with torch.no_grad():
                for weight, move in ahead.items():
                    weight.add_(move - moves[weight] if weight in moves else move)
            moves = ahead
        yield
        with torch.no_grad():
            for weight, move in moves.items():
                weight.sub_(move)

    def _scaled(self, way: Gradients, norms: dict[nn.Parameter, Tensor]) -> Gradients:
        """γ·d: `way` in the lengths of the weights before they were moved."""
        lengths = {weight: grad.norm() for weight, grad in way.items()}
        if self.scale == "layer":
            factors = {weight: self.gamma * norms[weight] / (length + 1e-20) for weight, length in lengths.items()}
            return {weight: grad * factors[weight] for weight, grad in way.items()}
        of_weights, of_way = (torch.stack([each[weight] for weight in way]).norm() for each in (norms, lengths))
        return {weight: grad * (self.gamma * of_weights / (of_way + 1e-20)) for weight, grad in way.items()}
