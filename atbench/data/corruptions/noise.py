"""Pixel noise: Gaussian, shot, impulse."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from atbench.data.corruptions.fields import normal, unit
from atbench.runs.seeding import ExampleDraws


def gaussian_noise(x: Tensor, rng: ExampleDraws, sigma: float) -> Tensor:
    """x + σ·N(0, 1)."""
    return x + sigma * normal(rng, x, *x.shape[1:])


def shot_noise(x: Tensor, rng: ExampleDraws, photons: float) -> Tensor:
    """Poisson(photons · x) / photons for x of 256 grey levels: counting noise of a sensor that is full at `photons`.

    One uniform number u a pixel, and the least count k with P(X ≤ k) > u.
    """
    level = (255 * x).round().long()
    most = int(photons + 12 * sqrt(photons) + 12)  # twelve standard deviations above the largest mean
    rate = torch.arange(256, dtype=x.dtype, device=x.device)[:, None] / 255 * photons
    count = torch.arange(most + 1, dtype=x.dtype, device=x.device)[None]
    cumulative = torch.special.gammaincc(count + 1, rate).cummax(dim=1).values
    cumulative[:, -1] = 1
    # One ladder for all levels, level v between v and v + 1, is sorted: a single search answers every pixel.
    ladder = (torch.arange(256, device=x.device)[:, None] + cumulative).flatten()
    index = torch.searchsorted(ladder, level + unit(rng, x, *x.shape[1:]), right=True) - level * (most + 1)
    return index.clamp(max=most).to(x.dtype) / photons


def impulse_noise(x: Tensor, rng: ExampleDraws, share: float) -> Tensor:
    """A `share` of the values becomes 0 or 1, half of it each (salt and pepper)."""
    u = unit(rng, x, *x.shape[1:])
    return torch.where(u < share, (u < share / 2).to(x.dtype), x)
