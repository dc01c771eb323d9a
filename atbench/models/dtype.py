"""Conversion between the dtype of the images and the dtype that a network takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Cast:
    """A network that takes images (B, C, H, W) of any floating dtype: they are cast to the network's, and the logits
    back to theirs. Gradients pass both casts.

    Attacks and evaluation work in float32 whatever the network computes in: rounded to bfloat16 an image moves
    by up to 1/512, so that its neighbours in a small ball are the image itself, and those at the edge lie outside.

    The type that a network takes is found at its first pass: that of the images; if it refuses that, the first of its
    parameters' types that it takes. A network of several types may cast by itself (and takes any), or not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.takes: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Any:
        logits = self._first(x) if self.takes is None else self.network(x.to(self.takes))
        return logits.to(x.dtype) if isinstance(logits, Tensor) else logits

    def _first(self, x: Tensor) -> Any:
        types = [x.dtype, *(p.dtype for p in self.network.parameters() if p.is_floating_point())]
        fault = RuntimeError("the network has no dtype")
        for dtype in dict.fromkeys(types):
            try:
                logits = self.network(x.to(dtype))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                fault = error
            else:
                self.takes = dtype
                return logits
        raise fault


def image_type(network: nn.Module) -> torch.dtype:
    """The type of images under attack: float64 for a network that is float64 throughout, else float32."""
    types = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return torch.float64 if types == {torch.float64} else torch.float32
