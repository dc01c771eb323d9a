"""Copies from the host to the device of training."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the CPU on `device`. CUDA makes it in the order of its work, from memory that does not
    move; from any other the host would wait for it. The memory is kept until then.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
