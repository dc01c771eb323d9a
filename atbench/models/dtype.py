"""The type of number at a network's boundary: images go in as it takes them, logits come back as the images are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Cast:
    """A network asked with images of any floating type, (B, C, H, W): they are cast to the type that it takes, and its
    logits back to theirs. Gradients pass both casts.

    Attacks and whoever judges them work in float32 whatever the network computes in: rounded to bfloat16 an image moves
    by up to 1/512, so that its neighbours in a small ball are the image itself, and those at the edge lie outside.

    The type that a network takes is found at its first pass: that of the images; if it refuses that, the first of its
    parameters' types that it takes. A network of several types may cast by itself (and takes any), or not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.takes: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Any:
        answer = self._first(x) if self.takes is None else self.network(x.to(self.takes))
        return answer.to(x.dtype) if isinstance(answer, Tensor) else answer

    def _first(self, x: Tensor) -> Any:
        types = [x.dtype, *(p.dtype for p in self.network.parameters() if p.is_floating_point())]
        fault = RuntimeError("the network was not asked")
        for dtype in dict.fromkeys(types):
            try:
                answer = self.network(x.to(dtype))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                fault = error
            else:
                self.takes = dtype
                return answer
        raise fault


def image_type(network: nn.Module) -> torch.dtype:
    """The type of images under attack: float64 for a network that is float64 throughout, else float32."""
    types = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return torch.float64 if types == {torch.float64} else torch.float32
