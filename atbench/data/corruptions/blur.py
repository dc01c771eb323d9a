"""Blurs: defocus, glass, motion, zoom. Lengths are pixels of a 32×32 image, scaled with the shorter side above that."""

from __future__ import annotations

from math import ceil, exp, radians, sqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data.corruptions.fields import uniform, unit
from atbench.runs.seeding import ExampleDraws


def scale(x: Tensor) -> float:
    """What a length given for 32×32 pixels is multiplied by. Never below 1: a blur shorter than a pixel is none."""
    return max(1.0, min(x.shape[2:]) / 32)


def gaussian(x: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian blur of (B, C, H, W), cut off at `truncate`·σ; edges are repeated. No blur where σ = 0."""
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return x
    weights = [exp(-(tap**2) / (2 * sigma**2)) for tap in range(-reach, reach + 1)]
    # A library's convolution in double precision unfolds all neighbours of all pixels: gigabytes for large pictures.
    for dim, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        size, wide = x.shape[dim], F.pad(x, pad, mode="replicate")
        x = torch.zeros_like(x)
        for tap, weight in enumerate(weights):
            x += weight / sum(weights) * wide.narrow(dim, tap, size)
    return x


def defocus_blur(x: Tensor, rng: ExampleDraws, radius: float, alias: float) -> Tensor:
    """The mean over the pixels within `radius`, then a Gaussian of σ = `alias` pixels that softens the disc's edge."""
    height, width = x.shape[2:]
    radius = radius * scale(x)
    reach = int(radius)
    # The disc is a run of pixels in each of its lines, and a run's sum is a difference of two running sums.
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    running = F.pad(padded.cumsum(dim=3), (1, 0))
    out, pixels = torch.zeros_like(x), 0
    for line in range(-reach, reach + 1):
        half = int(sqrt(radius**2 - line**2))
        rows = running.narrow(2, reach + line, height)
        out += rows.narrow(3, reach + half + 1, width) - rows.narrow(3, reach - half, width)
        pixels += 2 * half + 1
    return gaussian(out / pixels, alias)


def glass_blur(x: Tensor, rng: ExampleDraws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Gaussian blur, every pixel swapped `rounds` times with one at most `reach` away, Gaussian blur again.

    Swaps follow each other from the last pixel to the first, so that a pixel may be carried on. An offset is one of
    −reach … reach − 1, as published. The published code copies where it means to swap: it exchanges views of one array.
    """
    height, width = x.shape[2:]
    sigma, reach = sigma * scale(x), round(reach * scale(x))
    rows = np.arange(len(x))
    source = np.repeat(np.arange(height * width)[:, None], len(x), axis=1)  # (H·W, B): a pixel's swap is one line
    here = [h * width + w for h in range(height - reach, reach - 1, -1) for w in range(width - reach, reach - 1, -1)]
    for _ in range(rounds):
        # A number that rounds up to 1 would be an offset too far.
        offset = (2 * reach * unit(rng, x, 2, height * width)).floor().clamp(max=2 * reach - 1).long() - reach
        to = (offset[:, 0] * width + offset[:, 1]).cpu().numpy().T
        for pixel in here:
            other = pixel + to[pixel]
            held = source[pixel].copy()
            source[pixel] = source[other, rows]
            source[other, rows] = held
    index = torch.from_numpy(source.T.copy()).to(x.device)[:, None].expand(-1, x.shape[1], -1)
    return gaussian(gaussian(x, sigma).flatten(2).gather(2, index).view_as(x), sigma)


def motion(x: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Half a Gaussian, Σ_t w_t · x(p + t·(cos, sin)), t = 0 … 2·radius, along `angle` (B,) in radians; to whole pixels.

    This is what ImageMagick's motion blur does (from memory), with which the published sets were made.
    """
    height, width = x.shape[2:]
    example = torch.arange(len(x), device=x.device)[:, None, None]
    row, column = (torch.arange(side, device=x.device)[None] for side in (height, width))
    steps = torch.arange(2 * ceil(radius * scale(x)) + 1, dtype=x.dtype)
    weights = torch.exp(-(steps**2) / (2 * (sigma * scale(x)) ** 2))
    pixels, out = x.permute(0, 2, 3, 1), torch.zeros_like(x.permute(0, 2, 3, 1))
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        rows = (row + (step * angle.sin()).round().long()[:, None]).clamp(0, height - 1)
        columns = (column + (step * angle.cos()).round().long()[:, None]).clamp(0, width - 1)
        out += weight * pixels[example, rows[:, :, None], columns[:, None, :]]
    return out.permute(0, 3, 1, 2)


def motion_blur(x: Tensor, rng: ExampleDraws, radius: float, sigma: float) -> Tensor:
    """`motion` along an angle from U(−45°, 45°)."""
    return motion(x, radians(45) * uniform(rng, x), radius, sigma)


def zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of the image, enlarged `factor` times with linear interpolation."""
    theta = torch.eye(2, 3, dtype=x.dtype, device=x.device)[None] / factor
    grid = F.affine_grid(theta, [1, 1, *x.shape[2:]], align_corners=False)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=False)


def zoom_blur(x: Tensor, rng: ExampleDraws, zooms: int) -> Tensor:
    """The mean of the image and of its zooms by 1, 1.01, …, 1 + zooms/100."""
    out = x.clone()
    for percent in range(zooms + 1):
        out += zoom(x, 1 + percent / 100)
    return out / (zooms + 2)
