"""JPEG without rounding: RGB images to quantised DCT coefficients and back, differentiable (ITU-T T.81, T.871).

Y at full resolution, Cb and Cr at half of it (means of 2 × 2, repeated), blocks of 8 × 8, the tables of T.81 annex K.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
#: Rows Y, Cb, Cr of (R, G, B), and R, G, B of (Y, Cb − 128, Cr − 128).
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def encode(x: Tensor) -> Tensor:
    """(B, P) quantised coefficients, not rounded, of RGB images in [0, 1]: all of Y, then Cb, then Cr."""
    y, cb, cr = torch.einsum("kc,bchw->kbhw", x.new_tensor(TO_YCBCR), 255 * x)
    halved = (F.avg_pool2d(colour[:, None], 2).squeeze(1) for colour in (cb, cr))
    planes = ((y - 128, LUMA), *((colour, CHROMA) for colour in halved))
    return torch.cat([(_dct(_blocks(plane)) / x.new_tensor(table)).flatten(1) for plane, table in planes], dim=1)


def decode(coefficients: Tensor, height: int, width: int) -> Tensor:
    """RGB images (B, 3, height, width) of quantised coefficients; [0, 1] is not enforced."""
    luma, chroma = height * width, height * width // 4
    sizes = ((LUMA, height, width), (CHROMA, height // 2, width // 2), (CHROMA, height // 2, width // 2))
    planes = []
    for part, (table, rows, columns) in zip(coefficients.split([luma, chroma, chroma], dim=1), sizes, strict=True):
        blocks = part.view(len(part), -1, BLOCK, BLOCK) * part.new_tensor(table)
        planes.append(_joined(_inverse_dct(blocks), rows, columns))
    y, cb, cr = planes
    doubled = (colour.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) for colour in (cb, cr))
    ycbcr = torch.stack((y + 128, *doubled))
    return torch.einsum("ck,kbhw->bchw", coefficients.new_tensor(TO_RGB), ycbcr) / 255


def _blocks(plane: Tensor) -> Tensor:
    """(B, H, W) as (B, HW / 64, 8, 8), row by row."""
    batch, height, width = plane.shape
    tiles = plane.view(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3)
    return tiles.reshape(batch, -1, BLOCK, BLOCK)


def _joined(blocks: Tensor, height: int, width: int) -> Tensor:
    tiles = blocks.view(len(blocks), height // BLOCK, width // BLOCK, BLOCK, BLOCK).transpose(2, 3)
    return tiles.reshape(len(blocks), height, width)


def _dct(blocks: Tensor) -> Tensor:
    basis = _dct_basis().to(blocks)
    return basis @ blocks @ basis.T


def _inverse_dct(blocks: Tensor) -> Tensor:
    basis = _dct_basis().to(blocks)
    return basis.T @ blocks @ basis


def _dct_basis() -> Tensor:
    """The orthonormal DCT-II, rows by frequency, float64: c_u / 2 · cos((2t + 1)uπ / 16) with c_0 = 1/√2."""
    t = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos((2 * t + 1) * t[:, None] * pi / (2 * BLOCK)) / 2
    basis[0] /= sqrt(2)
    return basis
