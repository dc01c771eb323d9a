"""Activation functions by name. Each place in a network gets a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.errors import ConfigError, hint

ActivationFactory = Callable[[], nn.Module]


class SmoothReLU(nn.Module):
    """f(x) = x − log(1 + b·x)/b for x ≥ 0, and 0 below, b = a²: once differentiable, and ReLU as b grows.

    f'(x) = b·x/(1 + b·x) for x ≥ 0. a is learned, one scalar a layer, and starts at 20. It has no dimension, so that
    `train.weight_decay_on: weights` spares it, as the authors do. Source: Xie et al. 2020 (arXiv 2006.14536); a² and
    its start are cihangxie/SmoothAdversarialTraining's.
    """

    def __init__(self, root: float = 20.0) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.tensor(root))

    def forward(self, x: Tensor) -> Tensor:
        b = self.root.square()
        positive = F.relu(x)  # f is 0 at 0 with slope 0, so that the kink does not show
        return positive - torch.log1p(b * positive) / b


# The smooth ones make the gradients of attack and update continuous (Xie et al. 2020), which second-order methods need.
ACTIVATIONS: Mapping[str, ActivationFactory] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # Madry's w32-10 and Free-m; VAT
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),  # cihangxie/SmoothAdversarialTraining, resnet_model.py
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "parametric_softplus": partial(nn.Softplus, beta=10.0),  # log(1 + exp(a·x))/a with a = 10, Xie et al. 2020
    "smooth_relu": SmoothReLU,
}

#: Types of the activations of ours and of torchvision's networks, without gates (sigmoids, the softmax of attention).
ACTIVATION_TYPES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus),
    SmoothReLU,
)


def activation_factory(name: str) -> ActivationFactory:
    """The constructor of the activation called `name`. Raises ConfigError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ConfigError("model.activation", name, "there is no such activation", hint(name, ACTIVATIONS))
    return ACTIVATIONS[name]


def activation_modules(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, ACTIVATION_TYPES)]
