"""What tests of losses compare with: formulas in plain Python, and slopes by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def log_softmax(row: list[float]) -> list[float]:
    """log p of one example."""
    total = math.log(math.fsum(math.exp(z) for z in row))
    return [z - total for z in row]


def ce(logits: Tensor, y: Tensor) -> list[float]:
    """−log p_y of each example."""
    return [-log_softmax(row)[label] for row, label in zip(logits.tolist(), y.tolist(), strict=True)]


def kl(clean: Tensor, adversarial: Tensor) -> list[float]:
    """KL(p ‖ q) of each example, from logits."""
    values = []
    for a, b in zip(clean.tolist(), adversarial.tolist(), strict=True):
        log_p, log_q = log_softmax(a), log_softmax(b)
        values.append(math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return values


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def slopes(module: nn.Module, value: Callable[[], Tensor], seed: int = 0, h: float = 1e-6) -> tuple[float, float]:
    """The slope of `value` along a random direction of the parameters: by autograd, and by a central difference."""
    rng = torch.Generator().manual_seed(seed)
    parameters = list(module.parameters())
    way = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
    grads = torch.autograd.grad(value(), parameters)
    exact = sum(float((g * d).sum()) for g, d in zip(grads, way, strict=True))

    def at(t: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, way, strict=True):
                p.add_(d, alpha=t)
        result = value().item()
        with torch.no_grad():
            for p, d in zip(parameters, way, strict=True):
                p.sub_(d, alpha=t)
        return result

    return exact, (at(h) - at(-h)) / (2 * h)
