"""BatchNorm layers of a frozen network in eval mode as part of the convolutions before them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.models.affine_norm import PLAIN, AffineNorm, affine_terms
from atbench.models.hooks import is_hooked
from atbench.models.network import Network
from atbench.models.weight_casts import CastForward, state_of

Call = Callable[[Tensor], Tensor]
Before = list[tuple[nn.Module, str, object]]  # a module, the name of one of its functions, what it had in the place


class FoldedConv:
    """A convolution and the BatchNorm layer behind it as one convolution, W' = s·W and b' = t + s·b.

    s and t are those of `AffineNorm`; W' and b' are computed once, at the first pass. A pass over the activations and
    one over their gradient are saved: a step of TRADES takes 0.95 of its time (small CNN), 0.98 to 0.99 (ResNet-18).
    Both layers run as they are where one has hooks, is in train mode or has other weights than at the start of the
    block, under autocast, and for images of another type.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.conv, self.norm = conv, norm
        self.state = state_of(conv)
        self.weights: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        if not self._holds(x):
            y: Tensor = norm(conv(x))
            return y
        if self.weights is None:
            self.weights = self._fold()
        return conv._conv_forward(x, *self.weights)

    def _holds(self, x: Tensor) -> bool:
        conv, norm = self.conv, self.norm
        return (
            x.dtype == conv.weight.dtype
            and norm.running_mean is not None
            and norm.running_mean.dtype == x.dtype
            and not norm.training
            and state_of(conv) == self.state
            and not (is_hooked(conv) or is_hooked(norm))
            and not torch.is_autocast_enabled(x.device.type)
        )

    @torch.no_grad()
    def _fold(self) -> tuple[Tensor, Tensor]:
        scale, shift = affine_terms(self.norm)
        bias = self.conv.bias
        return self.conv.weight * scale.view(-1, 1, 1, 1), shift if bias is None else shift + scale * bias


class FoldedSequential:
    """The forward of an nn.Sequential whose convolutions take the BatchNorm layers behind them in."""

    def __init__(self, chain: nn.Sequential) -> None:
        self.steps = fold(chain)

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class FoldedStages:
    """`Network.continue_from` that joins layers also across the cuts between stages, where a call runs through them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.steps: dict[tuple[int, int], list[Call]] = {}

    def __call__(self, h: Tensor, first: int, upto: int | None = None) -> Tensor:
        stages = list(self.network.stages)[first : None if upto is None else upto + 1]
        if any(is_hooked(stage) for stage in stages):
            return Network.continue_from(self.network, h, first, upto)
        key = first, len(stages)
        if key not in self.steps:
            self.steps[key] = fold([module for stage in stages for module in (stage if is_chain(stage) else [stage])])
        for step in self.steps[key]:
            h = step(h)
        return h


def fold(modules: Iterable[nn.Module]) -> list[Call]:
    """Modules in a row as a list of calls, each convolution joined with a BatchNorm layer right behind it."""
    calls: list[Call] = []
    for module in modules:
        if calls and (pair := folded(calls[-1], module)) is not None:
            calls[-1] = pair
        else:
            calls.append(module)
    return calls


def folded(conv: Call, norm: nn.Module) -> FoldedConv | None:
    """Both as one, if they are torch's own and `norm` runs as an affine map."""
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or conv.out_channels != norm.num_features:
        return None
    own = isinstance(vars(conv).get("forward"), CastForward | None)
    return FoldedConv(conv, norm) if own and isinstance(vars(norm).get("forward"), AffineNorm) else None


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the module runs its children in a row, and nothing else."""
    own = isinstance(vars(module).get("forward"), FoldedSequential | None)
    return own and type(module).forward is nn.Sequential.forward


def replace_forwards(modules: Collection[nn.Module], affine: bool) -> Before:
    """Give all modules of a network the forwards above, or their own back. Returns what `restore_forwards` needs."""
    before: Before = []

    def put(module: nn.Module, name: str, function: object) -> None:
        before.append((module, name, vars(module).pop(name, None)))
        if function is not None:
            vars(module)[name] = function

    for module in modules:
        if isinstance(vars(module).get("forward"), AffineNorm | FoldedSequential):
            put(module, "forward", None)
        if isinstance(vars(module).get("continue_from"), FoldedStages):
            put(module, "continue_from", None)
    if not affine:
        return before
    for module in modules:
        if isinstance(module, _BatchNorm) and type(module) in PLAIN and "forward" not in vars(module):
            put(module, "forward", AffineNorm(module))
    for module in modules:
        if is_chain(module):
            chain = FoldedSequential(module)
            if any(isinstance(step, FoldedConv) for step in chain.steps):
                put(module, "forward", chain)
        if isinstance(module, Network) and type(module).continue_from is Network.continue_from:
            put(module, "continue_from", FoldedStages(module))
    return before


def restore_forwards(before: Before) -> None:
    """Put back what `replace_forwards` found."""
    for module, name, function in reversed(before):
        vars(module).pop(name, None)
        if function is not None:
            vars(module)[name] = function
