"""Fog and snow: textures whose parameters are searched; ε is how much of the texture is laid over the image."""

from __future__ import annotations

from abc import abstractmethod
from math import log2, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.norms.lp_ball import clip
from atbench.attacks.unforeseen.distortion import ROUNDING, Distortion, Shape, uniform01
from atbench.runs.seeding import ExampleDraws

LEVELS = 255
LEAST_SIDE = 64


class Overlay(Distortion):
    """A texture of large images, with sign steps of one length whatever ε is, and z in [0, 1]."""

    #: A step is √(0.001 / steps): 0.002236 at 200 (advex-uar, calibrations/imagenet-100).
    SQUARED_LENGTH = 1e-3

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        channels, height, width = shape
        fits = channels == 3 and height == width and height >= LEAST_SIDE
        return None if fits else f"wants square RGB images of {LEAST_SIDE} pixels or more"

    def size(self, steps: int) -> float:
        return sqrt(self.SQUARED_LENGTH / steps)

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        return self.limit(z + self.size(steps) * grad.sign())

    @abstractmethod
    def limit(self, z: Tensor) -> Tensor:
        """z put back into its set."""


class Fog(Overlay):
    """A(x, z) = (x + ε·fog(z)) / (max x + ε), the maximum by channel, in grey levels.

    fog(z) is the diamond-square fractal of Hendrycks & Dietterich 2019 on 2^(⌊log₂ side⌋ + 1) points a side, its middle
    cut out, scaled to [0, 1]; z (B, P, 1, 1) in [0, 1] stands for its random numbers, coarse to fine. Each image has a
    scale of its own; the authors' is that of the batch.
    """

    unit = "grey levels of fog"
    DECAY = 2.0  # by which random numbers shrink from scale to scale
    LARGEST = 100.0

    @property
    def scales(self) -> int:
        return int(log2(self.x.shape[-1])) + 1

    def start(self) -> Tensor:
        count = 3 * sum(4**level for level in range(self.scales))
        return uniform01(self.x.new_empty((len(self.x), count, 1, 1)), self.rng.at("start"))

    def render(self, z: Tensor) -> Tensor:
        field = diamond_square(z.flatten(1), self.scales, self.LARGEST, self.DECAY)
        low, high = field.amin(dim=(1, 2), keepdim=True), field.amax(dim=(1, 2), keepdim=True)
        margin = (field.shape[1] - self.x.shape[-1]) // 2
        middle = slice(margin, margin + self.x.shape[-1])
        fog = ((field - low) / (high - low))[:, None, middle, middle]
        brightest = LEVELS * self.x.amax(dim=(2, 3), keepdim=True)
        return clip((LEVELS * self.x + self.eps * fog) / (brightest + self.eps))

    def limit(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1)

    def inside(self, z: Tensor) -> Tensor:
        return ((z >= 0) & (z <= 1)).flatten(1).all(dim=1)


def diamond_square(z: Tensor, scales: int, largest: float, decay: float) -> Tensor:
    """(B, 2^scales, 2^scales): each new point is the sum of four others / 4 + w·(2z − 1), w = largest / decay^level.

    The lower of the vertical and the left of the horizontal neighbours of a diamond are taken from two cells away
    (`roll(…, 2)`), as the authors do.
    """
    side, at = 2**scales, 0
    field = z.new_zeros((len(z), side, side))

    def noise(level: int) -> Tensor:
        nonlocal at
        part, at = z[:, at : at + 4**level].view(-1, 2**level, 2**level), at + 4**level
        return largest / decay**level * (2 * part - 1)

    for level in range(scales):
        step = side >> level
        corner, middle = slice(0, side, step), slice(step // 2, side, step)
        corners = field[:, corner, corner]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + noise(level)
        across = (centres + centres.roll(2, 1) + corners + corners.roll(-1, 2)) / 4 + noise(level)
        below = (centres + centres.roll(2, 2) + corners + corners.roll(-1, 1)) / 4 + noise(level)
        field = field.clone()
        field[:, middle, middle], field[:, corner, middle], field[:, middle, corner] = centres, across, below
    return field


class Snow(Overlay):
    """A(x, z) = 0.75·x + 0.25·max(x, 1.5·grey(x) + 0.5) + ε·snow(z): paler, and with flakes.

    z (B, 7, H/4, W/4) are intensities of flakes on seven grids; snow(z) = Σ_i k_i ∗ z_i⁴ with kernels k_i, short
    blurred strokes drawn for each image. z is in [0, 1] and its mean over each 8 × 8 part of a grid at most 0.2. The
    authors draw kernels for a batch, render z before they limit it, and leave the last step unlimited.
    """

    unit = "opacity of snow"
    GRIDS, BUDGET, PART = 7, 0.2, 8
    PALER = 0.25
    GREY = (0.2126, 0.7152, 0.0722)

    def __init__(self, x: Tensor, eps: float, rng: ExampleDraws) -> None:
        super().__init__(x, eps, rng)
        self.kernels = flake_kernels(x.new_empty(len(x), self.GRIDS), rng.at("kernels"))

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        fits = super().refusal(shape) is None and shape[1] % 32 == 0
        return None if fits else f"wants square RGB images of {LEAST_SIDE} pixels or more, divisible by 32"

    def start(self) -> Tensor:
        side = self.x.shape[-1] // 4
        u = uniform01(self.x.new_empty((len(self.x), self.GRIDS, side, side)), self.rng.at("start"))
        return torch.exp(-u / self.BUDGET)

    def render(self, z: Tensor) -> Tensor:
        batch, _, height, width = self.x.shape
        grids = z.new_zeros((batch, self.GRIDS, height, width))
        for i in range(4):
            grids[:, i, ::4, i::4] = z[:, i] ** 4
        for i in range(3):
            grids[:, i + 4, i + 1 :: 4, ::4] = z[:, i + 4] ** 4
        reach = self.kernels.shape[-1] // 2
        snow = F.conv2d(grids.flatten(0, 1)[None], self.kernels, padding=reach, groups=batch)[0][:, None]
        grey = (self.x * self.x.new_tensor(self.GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)
        paler = (1 - self.PALER) * self.x + self.PALER * torch.maximum(self.x, 1.5 * grey + 0.5)
        return clip(paler + self.eps * snow)

    def limit(self, z: Tensor) -> Tensor:
        z = z.clamp(1e-9, 1)
        return z * F.interpolate(self.BUDGET / self._means(z).clamp_min(self.BUDGET), scale_factor=self.PART)

    def inside(self, z: Tensor) -> Tensor:
        legal = ((z >= 0) & (z <= 1)).flatten(1).all(dim=1)
        return legal & (self._means(z).flatten(1).amax(dim=1) <= self.BUDGET * (1 + ROUNDING))

    def _means(self, z: Tensor) -> Tensor:
        return F.avg_pool2d(z, self.PART)


def flake_kernels(like: Tensor, rng: ExampleDraws) -> Tensor:
    """(B, G, 13, 13) for `like` (B, G): strokes through the middle, blurred by a 3 × 3 Gaussian.

    A stroke goes from the middle to a corner point 2 to 6 pixels right and down, and on by point symmetry; it is 1, 3
    or 5 wide (with probability 0.6, 0.3, 0.1), and all of an image are mirrored or none.
    """
    side, middle = 13, 6
    u = uniform01(like[..., None].expand(*like.shape, 4), rng)
    down, right = (2 + (5 * u[..., i]).floor().clamp(max=4) for i in (0, 1))
    width = 1 + 2.0 * (u[..., 2] >= 0.6) + 2.0 * (u[..., 2] >= 0.9)
    steep = down > right
    far, near = torch.maximum(down, right), torch.minimum(down, right)
    slope = (near / far)[..., None, None]
    reach = width[..., None, None] * (1 + slope).sqrt() / 4
    t = torch.arange(middle + 1, dtype=like.dtype, device=like.device)
    stroke = (1 + reach - (t[:, None] - slope * t).abs()).clamp(0, 1) * (t <= far[..., None, None])
    quarter = torch.where(steep[..., None, None], stroke.transpose(-1, -2), stroke)
    kernels = like.new_zeros((*like.shape, side, side))
    kernels[..., middle:, middle:] = quarter
    kernels[..., : middle + 1, : middle + 1] = quarter.flip((-1, -2))
    mirrored = rng.uniform(like[:, :1]) < 0
    kernels = torch.where(mirrored[..., None, None], kernels.flip(-1), kernels)
    deviation = (0.41 + 0.19 * u[..., 3])[..., None]
    line = torch.exp(-((torch.arange(-1, 2, dtype=like.dtype, device=like.device) / deviation) ** 2) / 2)
    line = line / line.sum(dim=-1, keepdim=True)
    blur = (line[..., None] * line[..., None, :]).flatten(0, 1)[:, None]
    blurred = F.conv2d(kernels.flatten(0, 1)[None], blur, padding=1, groups=len(blur))
    return blurred.view_as(kernels)
