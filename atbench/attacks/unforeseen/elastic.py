"""Elastic deformation: z is a flow of every pixel, smoothed by a Gaussian."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.norms.lp_ball import Linf
from atbench.attacks.unforeseen.distortion import ROUNDING, Distortion, Shape


class Elastic(Distortion):
    """A(x, z) = x sampled at p + (G ∗ z)(p), bilinear, black outside; z (B, 2, H, W) within ±ε pixels, sign steps.

    G has deviation 3 at 224 pixels a side and 3·32/224 at 32, on 2⌈4σ⌉ + 1 pixels: 25 and 5, the authors' sizes; other
    sides in proportion. Channel 0 of z is horizontal.
    """

    unit = "pixels of flow"

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        _, height, width = shape
        return None if height == width and height > 1 else "wants square images"

    def start(self) -> Tensor:
        flow = self.x.new_zeros((len(self.x), 2, *self.x.shape[2:]))
        return Linf().sample(flow, self.eps, self.rng.at("start"))

    def render(self, z: Tensor) -> Tensor:
        side = self.x.shape[-1]
        line = gaussian_line(3 * side / 224).to(z)
        kernel, reach = torch.outer(line, line).expand(2, 1, -1, -1), len(line) // 2
        smooth = F.conv2d(F.pad(z, (reach,) * 4, mode="reflect"), kernel, groups=2)
        places = torch.linspace(-1, 1, side, dtype=z.dtype, device=z.device)  # of the middles of pixels
        down, right = torch.meshgrid(places, places, indexing="ij")
        # The authors' unit: 2 / side is a pixel, though from the first middle to the last lie only side − 1.
        grid = torch.stack((right, down), dim=-1) + smooth.permute(0, 2, 3, 1) * (2 / side)
        return F.grid_sample(self.x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    def step(self, z: Tensor, grad: Tensor, steps: int, number: int) -> Tensor:
        return Linf().shrink(Linf().ascend(z, grad, self.size(steps)), self.eps)

    def inside(self, z: Tensor) -> Tensor:
        return z.flatten(1).abs().amax(dim=1) <= self.eps * (1 + ROUNDING)


def gaussian_line(deviation: float) -> Tensor:
    """exp(−t² / 2σ²) at t = −⌈4σ⌉ … ⌈4σ⌉, of sum 1, float64."""
    reach = ceil(4 * deviation)
    weights = torch.exp(-((torch.arange(-reach, reach + 1, dtype=torch.float64) / deviation) ** 2) / 2)
    return weights / weights.sum()
