"""Searches in the L∞ ball one example at a time, as slowly as their formulas read: what attacks are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.support.targets import draws
from tests.support.worlds import cnn

Value = Callable[[Tensor], Tensor]
N = 8


def world(n: int = N) -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network of 5 classes with logits of some size, and images with the labels it gives them."""
    network = cnn(classes=5, seed=3).eval().requires_grad_(False)
    with torch.no_grad():
        network.head.weight.mul_(20)
        x = torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return network, x, network(x).argmax(dim=1)


def uniform(shape: tuple[int, ...], row: int, *place: int | str, call: int = 0, n: int = N) -> Tensor:
    """U(−1, 1) as example `row` gets it at a place, in the call of that number."""
    rng = draws(n).at(*place)
    rng.calls = call
    return rng.uniform(torch.empty((n, *shape), dtype=torch.float64))[row : row + 1]


class Trace:
    """One example: the first misclassified of the points seen, else the one of the largest margin."""

    def __init__(self, network: nn.Module, x: Tensor, y: int, eps: float) -> None:
        self.network, self.x, self.y, self.eps = network, x, y, eps
        self.best, self.value, self.broken = x, -torch.inf, False

    def project(self, point: Tensor, eps: float | None = None) -> Tensor:
        eps = self.eps if eps is None else eps
        return torch.minimum(torch.maximum(point, self.x - eps), self.x + eps).clamp(0, 1)

    def margin(self, point: Tensor) -> float:
        """max_{k≠y} z_k − z_y."""
        z = self.network(point)[0]
        return float(max(z[k] for k in range(len(z)) if k != self.y) - z[self.y])

    def see(self, point: Tensor) -> bool:
        if not self.broken and (value := self.margin(point)) > self.value:
            self.best, self.value, self.broken = point, value, value > 0
        return self.broken

    def step(self, point: Tensor, value: Value, size: float, eps: float | None = None) -> Tensor:
        """One signed step up `value(logits)`."""
        leaf = point.clone().requires_grad_(True)
        value(self.network(leaf)[0]).backward()
        assert leaf.grad is not None
        return self.project(point + size * leaf.grad.sign(), eps)

    def climb(self, point: Tensor, plan: list[tuple[Value, float]]) -> Tensor:
        """Steps of (objective, size), until broken; the last point is seen too."""
        for value, size in plan:
            if self.see(point):
                return point
            point = self.step(point, value, size)
        self.see(point)
        return point


def true(y: int) -> Value:
    return lambda z: z[y]


def wrong(y: int) -> Value:
    """max_{k≠y} z_k."""
    return lambda z: torch.cat([z[:y], z[y + 1 :]]).max()


def gap(y: int) -> Value:
    return lambda z: wrong(y)(z) - z[y]
