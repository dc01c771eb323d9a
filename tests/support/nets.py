"""Our networks, small enough to run in a test, and ways to look inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from atbench.config import registry
from atbench.models import CNN, Network
from atbench.models.eat_mnist import EatMnist
from atbench.models.network import Shape
from atbench.models.plain import ConvNet8, ConvNet9, FastMnist, LeNet, SsdrlMnist, Strided, TradesMnist
from atbench.models.preact import WRN, PreActResNet
from atbench.models.residual import ResNet
from atbench.models.torchvision_models import TorchVision

Make = Callable[..., Network]

# Every class in small: the constructor, its options, the least side of an image.
SMALL: dict[str, tuple[Make, dict[str, Any], int]] = {
    "cnn": (CNN, {"width": 4}, 8),
    "mnist_trades": (TradesMnist, {}, 16),
    "mnist_fast": (FastMnist, {}, 4),
    "mnist_ssdrl": (SsdrlMnist, {}, 8),
    "strided": (Strided, {}, 4),
    "lenet": (LeNet, {}, 12),
    "lenet_madry": (LeNet, {"channels": (4, 8), "padding": (2, 2), "hidden": (16,)}, 4),
    "lenet_3x3": (LeNet, {"channels": (4, 8), "padding": (1, 1), "hidden": (16,), "kernel": 3}, 4),
    "convnet8": (ConvNet8, {}, 8),
    "convnet9": (ConvNet9, {}, 4),
    "eat_mnist": (EatMnist, {"convs": ((8, 4, 2, 1), (8, 3, 1, 0)), "hidden": (16,), "drop_input": 0.2}, 6),
    "eat_mnist_mlp": (EatMnist, {"convs": ((16, 0, 1, 0),), "hidden": (16, 16), "init": "he_normal"}, 4),
    "resnet": (ResNet, {"blocks": (1, 2, 1), "width": 8}, 8),
    "resnet_stem": (ResNet, {"blocks": (1, 1), "width": 8, "stem_width": 4}, 8),
    "resnet_pad": (ResNet, {"blocks": (1, 1), "width": 8, "shortcut": "pad"}, 8),
    "resnet_keras": (ResNet, {"blocks": (1, 1), "width": 8, "shortcut": "raw", "conv_bias": True}, 8),
    "resnet_bottleneck": (ResNet, {"blocks": (1, 1), "width": 8, "bottleneck": True}, 8),
    "resnet_large": (ResNet, {"blocks": (1, 1), "width": 8, "stem": "large"}, 8),
    "preact": (PreActResNet, {"blocks": (1, 1)}, 8),
    "preact_bottleneck": (PreActResNet, {"blocks": (1, 1), "bottleneck": True, "shortcut": "raw"}, 8),
    "preact_deepmind": (PreActResNet, {"blocks": (1, 1), "shortcut": "raw3x3", "padding": "same"}, 8),
    "preact_bare": (PreActResNet, {"blocks": (1, 1), "final_norm": False}, 8),
    "wrn": (WRN, {"depth": 10, "width": 1}, 8),
    "wrn_llr": (WRN, {"depth": 10, "width": 1, "padding": "same", "shortcut": "projection"}, 8),
    "wrn_madry": (WRN, {"depth": 10, "width": 1, "stem_width": 6, "shortcut": "pool", "activation": "leaky_relu"}, 8),
    "wrn_iaat": (WRN, {"depth": 10, "width": 1, "shortcut": "pool3x3", "norm_affine": False}, 8),
    "wrn_same": (WRN, {"depth": 10, "width": 1, "padding": "same", "activation": "silu"}, 8),
}


def build(make: Make, shape: Shape, classes: int = 5, seed: int = 0, **options: Any) -> Network:
    """A network on pixels shifted by ½, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(shape, classes, (0.5,) * shape[0], (0.5,) * shape[0], **options)


def small(name: str, channels: int = 3, side: int | None = None, **options: Any) -> Network:
    """A network of SMALL at a size it takes, in float64."""
    make, given, least = SMALL[name]
    side = side or max(least, 8)
    return build(make, (channels, side, side), **{**given, **options}).double()


def library(name: str, side: int, **options: Any) -> Network:
    return build(TorchVision, (3, side, side), name=name, **options)


def images(network_or_side: int, channels: int = 3, n: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand((n, channels, network_or_side, network_or_side), generator=rng, dtype=torch.float64)


def option(name: str, *overrides: str) -> dict[str, Any]:
    """The node of `model=name`. A copy."""
    return deepcopy(_option(name, overrides))


@cache
def _option(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(registry.conf_dir()), version_base="1.3"):
        node = OmegaConf.to_container(hydra.compose(f"model/{name}", list(overrides)).model)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The shapes of a network without its numbers."""
    with torch.device("meta"):
        return make()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@contextmanager
def operations() -> Iterator[list[str]]:
    """The names of the operations that run inside the block."""
    with _Log() as log:
        yield log.ops
