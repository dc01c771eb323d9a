"""The networks of amortised adversarial distributional training: generators, the encoder, the gradient's reversal."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from atbench.runs.seeding import generator

GENERATOR_NORMS = ("batch", "none")


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is reversed: what is upstream ascends what is downstream."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Residual(nn.Module):
    """relu(shortcut(x) + conv-norm-relu-conv-norm(x)), 3×3; the shortcut is 1×1-norm where the width changes."""

    def __init__(self, count: int, out: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(count, out, 3, norm), nn.ReLU(), *convolution(out, out, 3, norm))
        self.shortcut = nn.Identity() if count == out else nn.Sequential(*convolution(count, out, 1, norm))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.shortcut(x) + self.body(x))
        return out


class Generator(nn.Sequential):
    """(B, inputs, H, W) → (B, outputs, H, W): conv-norm-relu to `width` w, residual blocks w → 2w → 2w → w, conv. No
    biases.
    """

    def __init__(self, inputs: int, width: int, outputs: int, norm: str) -> None:
        super().__init__(
            *convolution(inputs, width, 3, norm),
            nn.ReLU(),
            Residual(width, 2 * width, norm),
            Residual(2 * width, 2 * width, norm),
            Residual(2 * width, width, norm),
            nn.Conv2d(width, outputs, 3, 1, 1, bias=False),
        )


class ImplicitGenerator(nn.Module):
    """(inputs (B, 3C, H, W), z (B, Z)) → (B, C, H, W): a `Generator` that is given z as one more channel, behind an MLP
    Z-256-(H·W) with rectified outputs.
    """

    def __init__(self, shape: tuple[int, int, int], z_dim: int, width: int, norm: str) -> None:
        super().__init__()
        channels, *sides = shape
        layers = (nn.Linear(z_dim, 256), nn.ReLU(), nn.Linear(256, prod(sides)), nn.ReLU())
        self.channel = nn.Sequential(*layers, nn.Unflatten(1, (1, *sides)))
        self.network = Generator(3 * channels + 1, width, channels, norm)

    def forward(self, inputs: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.network(torch.cat([inputs, self.channel(z)], dim=1))
        return out


class Encoder(nn.Sequential):
    """(B, C, H, W) → (B, 2Z): what q(z | u) is, from convolutions of 32, 64, 128 and 256 channels, a mean over pixels
    and a linear layer.

    Convolutions see no padding, as in models/generator.py; images smaller than 20×20, of which nothing would be left,
    are padded by half of each kernel.
    """

    CONVS = ((32, 5, 1), (64, 4, 2), (128, 4, 1), (256, 4, 2))  # channels, kernel, stride
    LEAST = 20

    def __init__(self, shape: tuple[int, int, int], z_dim: int, norm: str) -> None:
        layers: list[nn.Module] = []
        count, *sides = shape
        for channels, kernel, stride in self.CONVS:
            layers += convolution(count, channels, kernel, norm, stride, pad=min(sides) < self.LEAST)
            layers.append(nn.LeakyReLU())
            count = channels
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(count, 2 * z_dim))


@torch.no_grad()
def draw_weights(network: nn.Module, seed: int) -> None:
    """Draw a generator's parameters, the same on every process: weights N(0, 0.02), scales of the normalisation
    N(1, 0.02), biases 0.
    """
    for name, parameter in network.named_parameters():
        source = generator(parameter.device, seed, "adt-generator", name)
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02, generator=source)
        elif name.endswith("weight"):
            parameter.normal_(1, 0.02, generator=source)
        else:
            parameter.zero_()


@torch.no_grad()
def draw_encoder(encoder: Encoder, seed: int) -> None:
    """Draw the encoder's weights, the same on every process: convolutions N(0, 2/n), n kernel size times channels out,
    the linear layer U(±1/√inputs); biases 0.
    """
    for name, parameter in encoder.named_parameters():
        source = generator(parameter.device, seed, "adt-encoder", name)
        if parameter.ndim == 4:
            outputs, _, *kernel = parameter.shape
            parameter.normal_(0, sqrt(2 / (outputs * prod(kernel))), generator=source)
        elif parameter.ndim == 2:
            bound = 1 / sqrt(parameter.shape[1])
            parameter.uniform_(-bound, bound, generator=source)
        elif name.endswith("bias"):
            parameter.zero_()


def convolution(count: int, out: int, side: int, norm: str, stride: int = 1, pad: bool = True) -> list[nn.Module]:
    """A convolution, padded by half of its kernel or not at all, and its normalisation."""
    after: list[nn.Module] = [nn.BatchNorm2d(out)] if norm == "batch" else []
    return [nn.Conv2d(count, out, side, stride, side // 2 if pad else 0, bias=False), *after]
