"""Corruptions of processing and storage: contrast, elastic transform, pixelate, JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from atbench.data.corruptions.blur import gaussian
from atbench.data.corruptions.fields import uniform
from atbench.runs.seeding import ExampleDraws


def contrast(x: Tensor, rng: ExampleDraws, factor: float) -> Tensor:
    """μ + factor·(x − μ), μ the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def elastic_transform(x: Tensor, rng: ExampleDraws, strength: float, smooth: float, jitter: float) -> Tensor:
    """x(A(p + d(p))), all lengths as shares of the shorter side (after Simard, Steinkraus & Platt 2003).

    A is the affine map that takes three points around the middle back from where U(−jitter, jitter) moved them; d is
    U(−1, 1) for each pixel and axis, blurred by σ = `smooth` and multiplied by `strength`. One linear interpolation
    does both, and the image is reflected at its edges.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    q = side // 3
    middle = torch.tensor([width // 2, height // 2], dtype=x.dtype, device=x.device)
    points = middle + q * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=x.dtype, device=x.device)
    moved = points + jitter * side * uniform(rng, x, 3, 2)
    affine = torch.linalg.solve(_homogeneous(moved), points.expand(len(x), -1, -1))  # (B, 3, 2)
    shift = strength * side * gaussian(uniform(rng, x, 2, height, width), smooth * side, truncate=3)
    row, column = (torch.arange(length, dtype=x.dtype, device=x.device) for length in (height, width))
    pixels = torch.stack([column.expand(height, -1), row[:, None].expand(-1, width)], dim=-1)
    pixels = (pixels + shift.permute(0, 2, 3, 1)).flatten(1, 2)
    pixels = (_homogeneous(pixels) @ affine).view(len(x), height, width, 2)
    grid = 2 * pixels / torch.tensor([width - 1, height - 1], dtype=x.dtype, device=x.device) - 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)


def _homogeneous(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)


def pixelate(x: Tensor, rng: ExampleDraws, share: float) -> Tensor:
    """Every pixel becomes the mean of its block, of which there are ⌊share·H⌋ × ⌊share·W⌋.

    A pixel belongs to the block that its middle lies in, so that blocks are of one pixel or of two where `share` > ½.
    """
    rows, columns = (_block_means(side, int(share * side), x) for side in x.shape[2:])
    return rows @ x @ columns.T


def _block_means(side: int, blocks: int, like: Tensor) -> Tensor:
    """(side, side): the projection of a line of pixels on the means of its blocks."""
    block = (2 * torch.arange(side, device=like.device) + 1) * blocks // (2 * side)
    same = (block[:, None] == block[None, :]).to(like.dtype)
    return same / same.sum(dim=1, keepdim=True)


def jpeg_compression(x: Tensor, rng: ExampleDraws, quality: int) -> Tensor:
    """Stored as JPEG of this quality and read again, by Pillow."""
    pixels = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    out = np.stack([_jpeg(image, quality) for image in pixels])
    return torch.from_numpy(out).to(x).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2) / 255


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
