"""Random fields, one per example. Numbers are drawn on the CPU, so that every device makes the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.runs.seeding import ExampleDraws


def uniform(rng: ExampleDraws, x: Tensor, *shape: int) -> Tensor:
    """U(−1, 1) of shape (B, *shape), where `x` is."""
    return rng.uniform(x.new_empty((len(x), *shape), device="cpu")).to(x.device)


def unit(rng: ExampleDraws, x: Tensor, *shape: int) -> Tensor:
    """U(0, 1) of shape (B, *shape), where `x` is."""
    return (uniform(rng, x, *shape) + 1) / 2


def normal(rng: ExampleDraws, x: Tensor, *shape: int) -> Tensor:
    """N(0, 1) of shape (B, *shape), where `x` is."""
    return rng.normal(x.new_empty((len(x), *shape), device="cpu")).to(x.device)


def plasma(rng: ExampleDraws, x: Tensor, decay: float) -> Tensor:
    """(B, 1, H, W) in [0, 1]: a plasma fractal by diamonds and squares (Fournier, Fussell & Carpenter 1982) on a torus.

    From one point, the grid is halved until it is at least as fine as the image. A new point is the mean of its four
    neighbours plus U(−a, a), and a falls by `decay`² with every halving: the released fog multiplies its amplitude by
    itself, and divides it by `decay`.
    """
    height, width = x.shape[2:]
    size = 1 << (max(height, width) - 1).bit_length()
    noise = uniform(rng, x, size, size)
    field = torch.zeros_like(noise)
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        corner = field[:, ::step, ::step]
        right, below = corner.roll(-1, 2), corner.roll(-1, 1)
        centre = (corner + right + below + below.roll(-1, 2)) / 4 + amplitude * noise[:, half::step, half::step]
        across = (corner + right + centre + centre.roll(1, 1)) / 4 + amplitude * noise[:, ::step, half::step]
        down = (corner + below + centre + centre.roll(1, 2)) / 4 + amplitude * noise[:, half::step, ::step]
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step], field[:, half::step, ::step] = across, down
        step, amplitude = half, amplitude / decay**2
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low))[:, None, :height, :width]
