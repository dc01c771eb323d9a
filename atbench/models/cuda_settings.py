"""How CUDA's libraries compute in a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def cuda_settings(float32: str, benchmark: bool = False) -> Iterator[None]:
    """A block in which CUDA multiplies float32 as `ieee` or as `tf32`, and cuDNN times its algorithms for every new
    shape, if `benchmark`, and takes the fastest. Torch's own default is TF32 in convolutions and not elsewhere.
    """
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before, timed = [place.fp32_precision for place in places], cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = float32
        cudnn.benchmark = benchmark
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.fp32_precision = was
        cudnn.benchmark = timed
