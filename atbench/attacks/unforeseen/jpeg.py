"""JPEG: what rounding could do to the quantised coefficients of an image, and more."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.norms.lp_ball import L1, Ball, ball, clip
from atbench.attacks.unforeseen import jpeg_codec
from atbench.attacks.unforeseen.distortion import ROUNDING, Distortion, Shape
from atbench.runs.seeding import ExampleDraws

#: Bound of |z| under L2 and L1 (advex-uar, jpeg_attack.py, `l1_max`).
LARGEST = 2.0


class JPEG(Distortion):
    """A(x, z) = decode(encode(x) + z / 2): z, (B, P, 1, 1), in half steps of quantisation; ‖z‖ ≤ ε.

    Nothing is rounded. Colour is kept at half resolution, so that z = 0 is JPEG's image without rounding, and not x.
    """

    unit = "half steps of quantisation"
    norm: ClassVar[str]
    largest: ClassVar[float] = LARGEST

    def __init__(self, x: Tensor, eps: float, rng: ExampleDraws) -> None:
        super().__init__(x, eps, rng)
        self.coefficients = jpeg_codec.encode(x)

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        channels, height, width = shape
        fits = channels == 3 and height % 16 == 0 and width % 16 == 0
        return None if fits else "wants RGB images with sides divisible by 16"

    @property
    def ball(self) -> Ball:
        return ball(self.norm)

    def start(self) -> Tensor:
        zero = torch.zeros_like(self.coefficients)[:, :, None, None]
        return self.ball.sample(zero, self.eps, self.rng.at("start"))

    def render(self, z: Tensor) -> Tensor:
        image = jpeg_codec.decode(self.coefficients + z.flatten(1) / 2, self.x.shape[2], self.x.shape[3])
        return clip(image)

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        moved = self.ball.shrink(self.ball.ascend(z, grad, self.size(steps)), self.eps)
        return moved.clamp(-self.largest, self.largest)

    def inside(self, z: Tensor) -> Tensor:
        short = self.ball.norm(z.double()) <= self.eps * (1 + ROUNDING)
        return short & (z.flatten(1).abs().amax(dim=1) <= self.largest * (1 + ROUNDING))


class JPEGLinf(JPEG):
    """|z_j| ≤ ε, sign steps; ε = 1 is all that rounding could do."""

    norm = "linf"
    largest = torch.inf


class JPEGL2(JPEG):
    """‖z‖₂ ≤ ε and |z_j| ≤ 2, steps along the gradient."""

    norm = "l2"


class JPEGL1(JPEG):
    """‖z‖₁ ≤ ε and |z_j| ≤ 2 by Frank-Wolfe: z ← z + (v − z) / (t + 1).

    As in the authors' code v_j may be as large as the way from z_j to ±2, not from 0: what keeps its sign tends to 1.
    The reference accuracies were measured so.
    """

    norm = "l1"

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        # The box [-2, 2] as [0, 1]. The first step forgets the start, and so does its room.
        place = (z if number else torch.zeros_like(z)) / (2 * LARGEST) + 0.5
        v = 2 * LARGEST * (L1(sparsity=0).ascend(place, grad, self.eps / (2 * LARGEST)) - place)
        return z + (v - z) / (number + 1)
