"""Corruptions of weather and light: snow, frost, fog, brightness."""

from __future__ import annotations

from math import radians

import torch
from torch import Tensor

from atbench.data.corruptions.blur import motion, scale, zoom
from atbench.data.corruptions.fields import normal, plasma, uniform
from atbench.runs.seeding import ExampleDraws

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grey(x: Tensor) -> Tensor:
    """(B, 1, H, W) brightness of images with 1 or 3 channels."""
    if x.shape[1] == 1:
        return x
    return (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def snow(
    x: Tensor,
    rng: ExampleDraws,
    mean: float,
    sigma: float,
    flake: float,
    threshold: float,
    radius: float,
    smear: float,
    keep: float,
) -> Tensor:
    """x̃ + S + (S turned by 180°) with x̃ = keep·x + (1 − keep)·max(x, 1.5·grey(x) + 0.5), a paler image.

    S is noise N(mean, σ) enlarged `flake` times, of which what lies above `threshold` falls: motion blur (`radius`, σ
    `smear`) along an angle from U(−135°, −45°).
    """
    layer = mean + sigma * normal(rng, x, 1, *x.shape[2:])
    layer = zoom(layer, flake * scale(x))
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    layer = motion(layer, radians(-90) + radians(45) * uniform(rng, x), radius, smear)
    pale = keep * x + (1 - keep) * torch.maximum(x, 1.5 * grey(x) + 0.5)
    return pale + layer + layer.flip(2, 3)


def procedural_frost(x: Tensor, rng: ExampleDraws, keep: float, frost: float) -> Tensor:
    """keep·x + frost·T with a computed texture T: accuracies are not comparable with the published `frost`.

    The published one crops T from six photographs of frosted glass. Here T = ½·p + (1 − |2q − 1|)⁴, clipped: a milky
    ground and bright veins where a second field crosses ½; p and q are plasma fractals, of decay 2 and 1.5.
    """
    ground, veins = plasma(rng, x, 2.0), plasma(rng, x, 1.5)
    return keep * x + frost * (ground / 2 + (1 - (2 * veins - 1).abs()) ** 4).clamp(0, 1)


def fog(x: Tensor, rng: ExampleDraws, thickness: float, decay: float) -> Tensor:
    """(x + thickness·P) · m / (m + thickness), P a plasma fractal of this decay and m the image's largest value."""
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * plasma(rng, x, decay)) * brightest / (brightest + thickness)


def brightness(x: Tensor, rng: ExampleDraws, more: float) -> Tensor:
    """V ← min(V + more, 1) in HSV: hue and saturation stay, all channels grow by the factor of V, their largest."""
    value = x.amax(dim=1, keepdim=True)
    lighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * lighter / value.clamp_min(1e-9), lighter)
