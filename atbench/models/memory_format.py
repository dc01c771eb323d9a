"""Whether a network runs in channels_last, the layout in which convolutions are fast.

On a CPU in fp32 gradient steps of small CNNs and ResNet-20 take 0.76 to 0.88 of the time, of WRN-28-4 0.9, of
PreActResNet-18 0.9 (batch 64) to 1.05 (batch 4). Not measured on CUDA.
"""

from __future__ import annotations

import torch
from torch import nn

from atbench.errors import ConfigError
from atbench.models.batchnorm import attack_mode
from atbench.models.network import Shape


def use_channels_last(owner: nn.Module, network: nn.Module, shape: Shape, required: bool) -> bool:
    """Put the weights of `owner` into channels_last, if `network`, a part of it, runs so on images of this shape.

    Returns whether it does; if not, the weights are contiguous again: a `.view(B, -1)` of activations asks for that.
    Raises ConfigError where it is `required`.
    """
    owner.to(memory_format=torch.channels_last)
    try:
        try_channels_last(network, shape)
    except RuntimeError as error:
        owner.to(memory_format=torch.contiguous_format)
        if required:
            why = f"the network does not run in it: {str(error).strip().partition(chr(10))[0]}"
            fix = "write .flatten(1) in place of .view, or use auto or false"
            raise ConfigError("train.channels_last", True, why, fix) from error
        return False
    return True


def try_channels_last(network: nn.Module, shape: Shape) -> None:
    """Two grey images forward and back to the input. Leaves no trace: statistics, gradients and random numbers are what
    they were.
    """
    parameter = next(network.parameters())
    x = torch.full((2, *shape), 0.5, dtype=parameter.dtype, device=parameter.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    with attack_mode(network, "eval"), torch.enable_grad():
        total = network(x).sum()
        if total.requires_grad:
            torch.autograd.grad(total, x, allow_unused=True)
