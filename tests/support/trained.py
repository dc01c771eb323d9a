"""What minimum-norm attacks are tried on: a linear network among its boundaries, and a small trained one."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data.digits import digits
from tests.support.targets import SIDE, Linear


def balanced(classes: int) -> Linear:
    """A linear network to which a grey image is all classes alike: images of the middle are near their boundaries."""
    network = Linear(classes=classes)
    grey = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    with torch.no_grad():
        network.head.bias -= network(grey).squeeze(0)
    return network


@lru_cache(maxsize=1)
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network on 8x8 digits, and 100 test images that it classifies right, with their labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        source = digits()
        x, y = source.train.floats(torch.arange(len(source.train)), torch.float32), source.train.y
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(6):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
    network.eval().requires_grad_(False)
    test = source.test()
    x, y = test.floats(torch.arange(len(test)), torch.float32), test.y
    right = (network(x).argmax(dim=1) == y).nonzero().flatten()[:100]
    return network, x[right], y[right]


def distances(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, p: float) -> Tensor:
    """(B,): ‖x_adv − x‖_p, infinite where `x_adv` is no misclassified image."""
    wrong = network(x_adv).argmax(dim=1) != y
    return torch.where(wrong, (x_adv - x).flatten(1).norm(p=p, dim=1), torch.inf)
