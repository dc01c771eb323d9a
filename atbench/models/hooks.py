"""Hooks of others on modules, which have to see what they would see without a faster way through the network."""

from __future__ import annotations

from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether functions of others run before or behind this module's forward or its backward pass."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks(network: nn.Module) -> bool:
    """Whether any module of `network` is hooked."""
    return any(map(is_hooked, network.modules()))
