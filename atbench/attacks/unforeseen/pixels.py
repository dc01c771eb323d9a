"""L∞, L2 and L1 in grey levels: z = δ, A(x, z) = x + δ."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from atbench.attacks.norms.lp_ball import L1, ball
from atbench.attacks.unforeseen.distortion import ROUNDING, Distortion

LEVELS = 255


class PixelBall(Distortion):
    """Projected gradient ascent in a norm ball of pixels; ε in grey levels of 0 to 255, ‖δ‖ of the whole image."""

    norm: ClassVar[str]

    @property
    def radius(self) -> float:
        return self.eps / LEVELS

    def start(self) -> Tensor:
        return ball(self.norm).sample(self.x, self.radius, self.rng.at("start"))

    def render(self, z: Tensor) -> Tensor:
        return self.x + z

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        p = ball(self.norm)
        return p.project(self.x, p.ascend(self.x + z, grad, self.size(steps) / LEVELS), self.radius) - self.x

    def inside(self, z: Tensor) -> Tensor:
        # δ is the difference of two pixels, each rounded once.
        return ball(self.norm).norm(z.double()) <= self.radius * (1 + ROUNDING) + ROUNDING / LEVELS


class Linf(PixelBall):
    """|δ_j| ≤ ε."""

    norm, unit = "linf", "grey levels"


class L2(PixelBall):
    """‖δ‖₂ ≤ ε."""

    norm, unit = "l2", "grey levels, L2 of the image"


class FrankWolfeL1(PixelBall):
    """‖δ‖₁ ≤ ε by Frank-Wolfe: δ ← δ + (v − δ) / (t + 1), v the point of ball and box that ⟨∇, v⟩ is largest at.

    v moves pixels to black or white in the order of their |∇| until ε is spent. The first step forgets the start.
    """

    norm, unit = "l1", "grey levels, L1 of the image"

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        return z + (vertex(self.x, grad, self.radius) - z) / (number + 1)


def vertex(x: Tensor, grad: Tensor, radius: float) -> Tensor:
    """argmax ⟨grad, v⟩ over ‖v‖₁ ≤ radius with x + v in [0, 1]: L1's steepest step of that length within the box."""
    return L1(sparsity=0).ascend(x, grad, radius) - x
