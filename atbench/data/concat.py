"""Concatenation of two tensors of images without a copy."""

from __future__ import annotations

import torch
from torch import Tensor


class ConcatImages:
    """The rows of `first`, then those of `second`: stands where one tensor of images could, and is read by rows."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.first.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    @property
    def ndim(self) -> int:
        return self.first.ndim

    @property
    def device(self) -> torch.device:
        return self.first.device

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = torch.arange(len(self), device=self.device)[index] if isinstance(index, slice) else index
        size = len(self.first)
        # Of both a row is read and one is left: a mask would have to ask the device how many there are.
        first, second = self.first[rows.clamp(max=size - 1)], self.second[(rows - size).clamp(min=0)]
        return torch.where((rows < size).view(-1, *[1] * (self.ndim - 1)), first, second).contiguous()

    def to(self, device: torch.device) -> ConcatImages:
        return ConcatImages(self.first.to(device), self.second.to(device))
