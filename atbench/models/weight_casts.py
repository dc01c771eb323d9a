"""Casts of frozen weights for autocast, made once for a block and not again at every forward.

Autocast remembers the casts of weights that take a gradient alone, so that those of a frozen network, which an attack
runs forward many times, are cast in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Layer = nn.Conv2d | nn.Linear
#: The cast of each weight on CUDA: a graph that was recorded reads it where it lay then.
PLACES = WeakTensorKeyDictionary()


class CastForward:
    """The forward of a convolution or linear layer on casts of its weight and bias, where autocast would make just
    these; else the layer's own: autocast is off or another, or a weight takes a gradient, was changed or replaced.

    Two are equal that read the same places: a graph that was recorded with one holds for the other.
    """

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
        self.layer, self.weight, self.bias, self.state = layer, weight, bias, state_of(layer)
        self.places = (id(layer), weight.data_ptr(), None if bias is None else bias.data_ptr())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CastForward) and other.places == self.places

    def __hash__(self) -> int:
        return hash(self.places)

    def __call__(self, x: Tensor) -> Tensor:
        layer, kind = self.layer, x.device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self.weight.dtype
        if not autocast or state_of(layer) != self.state:
            own: Tensor = type(layer).forward(layer, x)  # type: ignore[arg-type]  # of its own class
            return own
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.weight, self.bias)
        return layer._conv_forward(x, self.weight, self.bias)


def state_of(layer: Layer) -> list[tuple[int, int, bool]]:
    """Which weights these are, how often they were written to, and whether they take a gradient."""
    return [(id(each), each._version, each.requires_grad) for each in (layer.weight, layer.bias) if each is not None]


@contextmanager
def cast_weights(network: nn.Module) -> Iterator[None]:
    """A block in which autocast, if it is on, finds the frozen weights of `network` cast.

    Those of exact nn.Conv2d and nn.Linear, whose forward is known: no subclass, no parametrised layer, and none that a
    block around this one has cast. A compiled network is left as it is: there casts are part of the kernels.
    """
    first = next(network.parameters(), None)
    kind = "cpu" if first is None else first.device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    modules = list(network.modules())
    layers = [module for module in modules if castable(module)]
    if not layers or any(module._compiled_call_impl is not None for module in modules):
        yield
        return
    dtype = torch.get_autocast_dtype(kind)
    weights = {id(each): each for layer in layers for each in (layer.weight, layer.bias) if each is not None}
    casts = {key: place(each, dtype) for key, each in weights.items()}  # of tied weights there is one
    with torch.no_grad():
        torch._foreach_copy_(list(casts.values()), list(weights.values()))
    for layer in layers:
        bias = None if layer.bias is None else casts[id(layer.bias)]
        vars(layer)["forward"] = CastForward(layer, casts[id(layer.weight)], bias)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def castable(module: nn.Module) -> TypeGuard[Layer]:
    """Whether the module's forward is that of torch, on frozen parameters in float32."""
    if type(module) not in (nn.Conv2d, nn.Linear) or "forward" in vars(module):
        return False
    weights = [module._parameters.get(name) for name in ("weight", "bias")]
    known = {(each.dtype, each.requires_grad) for each in weights if each is not None}
    return weights[0] is not None and known == {(torch.float32, False)}


def place(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Where to write the cast of a weight: on CUDA where that of the last block lay, if it still has the layout."""
    kept: Tensor | None = PLACES.get(weight) if keeps_place(weight) else None
    if kept is not None and (kept.dtype, kept.shape, kept.stride()) == (dtype, weight.shape, weight.stride()):
        return kept
    fresh = torch.empty_like(weight, dtype=dtype, requires_grad=False)
    if keeps_place(weight):
        PLACES[weight] = fresh
    return fresh


def keeps_place(weight: Tensor) -> bool:
    return weight.is_cuda
