"""Distortions: images A(x, z) that are differentiable in parameters z, and the search for the worst z.

Source: Kang et al. 2019, "Testing Robustness Against Unforeseen Adversaries", arXiv 1908.08016; ddkang/advex-uar. The
reference accuracies of UAR were measured with the authors' code, so that the search is theirs: towards a random wrong
class, from a random start, all steps, the last z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.base import Target
from atbench.attacks.losses import likelihood
from atbench.runs.seeding import ExampleDraws

#: What float32 may add to the size of z, as a share of ε.
ROUNDING = 1e-5
Shape = tuple[int, int, int]


class Distortion(ABC):
    """The images A(x, z) around one batch `x` (B, C, H, W) in [0, 1], for z in a set of size ε.

    unit: what ε is measured in. Everything random comes from `rng`, in substreams: one example's start and texture
    depend on no other's.
    """

    unit: ClassVar[str]

    def __init__(self, x: Tensor, eps: float, rng: ExampleDraws) -> None:
        self.x, self.eps, self.rng = x, eps, rng

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        """Why it is not defined for images of this shape (C, H, W); None if it is."""
        return None

    @abstractmethod
    def start(self) -> Tensor:
        """A random z (B, ...)."""

    @abstractmethod
    def render(self, z: Tensor) -> Tensor:
        """A(x, z), (B, C, H, W)."""

    @abstractmethod
    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        """z after step `number` (from 0) of `steps` along the gradient, back in the set."""

    @abstractmethod
    def inside(self, z: Tensor) -> Tensor:
        """(B,) booleans: whether z is in the set, up to rounding."""

    def size(self, steps: int) -> float:
        """Length of a step: ε / √steps (advex-uar, pyt_common.py)."""
        return self.eps / sqrt(steps)

    def image(self, z: Tensor) -> Tensor:
        """A(x, z) in [0, 1]; x itself where ε is 0."""
        return self.render(z).clamp(0, 1) if self.eps else self.x.clone()


def search(distortion: Distortion, target: Target, classes: Tensor, steps: int) -> Tensor:
    """The z after `steps` steps that raise log p of the wrong `classes` (B,)."""
    z = distortion.start()
    for number in range(steps):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = likelihood(target.logits(distortion.render(z)), classes).sum()
            (grad,) = torch.autograd.grad(value, z)
        z = distortion.step(z.detach(), grad, steps, number)
    return z.detach()


def uniform01(like: Tensor, rng: ExampleDraws) -> Tensor:
    """U(0, 1), shaped like `like`."""
    return (rng.uniform(like) + 1) / 2
