"""Distortions around smooth colour images, and a small network for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks.unforeseen.distortion import Distortion
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.runs.seeding import ExampleDraws

#: Attacks that want large images.
LARGE = ("fog", "snow", "gabor")


class Net(nn.Module):
    """A small smooth network of colour images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 5, stride=3), nn.Linear(36, 4)
        rng = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.3, generator=rng)
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(torch.tanh(self.first(4 * (x - 0.5))), 3).flatten(1))


class Target:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x)


def pictures(side: int, n: int = 3) -> Tensor:
    """Smooth colour images that have black and white pixels."""
    coarse = torch.rand(n, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (1.4 * F.interpolate(coarse, size=side, mode="bilinear") - 0.2).clamp(0, 1)


def made(name: str, eps: float, side: int | None = None, n: int = 3, seed: int = 0) -> Distortion:
    x = pictures(side or (64 if name in LARGE else 32), n)
    return DISTORTIONS[name](x, eps, ExampleDraws(seed, "test", index=torch.arange(n)))
