"""Dropout behind every activation of a network that has none, with a probability that changes during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atbench.models.activations import activation_modules
from atbench.runs.seeding import Draws


class ScheduledDropout:
    """Dropout on the output of each activation module of `network`, in train mode and within `active`.

    Of feature maps (B, C, H, W) whole channels are dropped, of anything else single values; what is left is divided by
    1 − p. It hangs on forward hooks: a module that is used at several places drops at each of them, no parameter or
    buffer is renamed, and a network built afresh from the weights has no dropout. p is a tensor, so that a compiled
    network is not compiled anew when it changes; with p = 0 outputs are what they were, bit for bit.
    """

    def __init__(self, network: nn.Module) -> None:
        self.p = torch.zeros((), dtype=torch.float64)
        self.draws: Draws | None = None
        self.places = activation_modules(network)
        for module in self.places:
            module.register_forward_hook(self)

    @contextmanager
    def active(self, p: float, draws: Draws) -> Iterator[None]:
        """A block with dropout of probability `p`; `draws` are joint over processes, one draw an activation."""
        self.p, self.draws = torch.tensor(p, dtype=torch.float64, device=draws.source.device), draws
        try:
            yield
        finally:
            self.draws = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.draws is None or not module.training:
            return output
        like = output.detach()
        like = (like[:, :, 0, 0] if like.ndim == 4 else like).float()  # half precision would round the draws
        kept = (self.draws.uniform(like) + 1) / 2 >= self.p
        scale = (kept / (1 - self.p)).to(output.dtype)
        return output * scale.view(*scale.shape, *[1] * (output.ndim - scale.ndim))
