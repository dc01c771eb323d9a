"""Gabor noise: z through a Gabor filter, its contrast evened out."""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.norms.lp_ball import clip
from atbench.attacks.unforeseen.distortion import uniform01
from atbench.attacks.unforeseen.weather import LEVELS, Overlay
from atbench.runs.seeding import ExampleDraws


class Gabor(Overlay):
    """A(x, z) = x + ε·noise(z), the same in all channels; z (B, 1, H, W) in [-1, 1].

    noise(z) is z through a filter drawn for each image, divided by its distance from the mean, in [0, 1]. The start is
    sparse, a fourteenth of the pixels; a step leaves exactly these at 0 and moves all others, as in the authors' code
    (the paper means the opposite): the reference accuracies were measured so.
    """

    unit = "grey levels of noise"
    SPARSITY = 1 / 14
    FLOOR = 1e-3

    def __init__(self, x: Tensor, eps: float, rng: ExampleDraws) -> None:
        super().__init__(x, eps, rng)
        self.filters = gabor_filters(x.new_empty(len(x)), rng.at("filters"))
        self.sparse = uniform01(x[:, :1], rng.at("places")) < self.SPARSITY

    def start(self) -> Tensor:
        return self.rng.at("start").uniform(self.x[:, :1]) * self.sparse

    def render(self, z: Tensor) -> Tensor:
        reach = self.filters.shape[-1] // 2
        filtered = F.conv2d(z.transpose(0, 1), self.filters, padding=reach, groups=len(z)).transpose(0, 1)
        return clip(self.x + self.eps / LEVELS * self._evened(filtered))

    def _evened(self, filtered: Tensor) -> Tensor:
        """m + (f − m)·(c + 1) / (c + |f − m| / max |f − m|), in [0, 1]: m the mean, all but f constants."""
        offset = filtered - filtered.mean(dim=(2, 3), keepdim=True)
        distance = offset.detach().abs()
        contrast = distance / distance.amax(dim=(2, 3), keepdim=True)
        mean = (filtered - offset).detach()
        evened = mean + (filtered - mean) * (self.FLOOR + 1) / (self.FLOOR + contrast)
        low, high = (bound(evened.detach(), dim=(2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
        return (evened - low) / (high - low)

    def limit(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1) * ~self.sparse

    def inside(self, z: Tensor) -> Tensor:
        return (z.abs() <= 1).flatten(1).all(dim=1) & (z * self.sparse == 0).flatten(1).all(dim=1)


def gabor_filters(like: Tensor, rng: ExampleDraws) -> Tensor:
    """(B, 1, 23, 23) for `like` (B,): Σ_i g(θ + iπ/s) over s = 1 … 10 directions, g(θ) = exp(−r²/2σ²)·cos(2πλ·x_θ).

    r and x_θ (along θ) are in units of the filter's side; σ ∈ [0.1, 0.4] (+ 0.001), λ ∈ [3, 5.75], θ ∈ [0, π].
    """
    side = 23
    u = uniform01(like[:, None].expand(-1, 4), rng)[:, :, None, None]
    count, deviation = 1 + (10 * u[:, 0]).floor().clamp(max=9), 0.1 + 0.3 * u[:, 1] + 1e-3
    frequency, angle = 3 + (side / 4 - 3) * u[:, 2], pi * u[:, 3]
    line = torch.linspace(-0.5, 0.5, side, dtype=like.dtype, device=like.device)
    down, right = torch.meshgrid(line, line, indexing="ij")
    envelope = torch.exp(-(right**2 + down**2) / (2 * deviation**2))
    total = torch.zeros_like(envelope)
    for i in range(10):
        turned = angle + pi * i / count
        wave = torch.cos(2 * pi * frequency * (right * torch.cos(turned) + down * torch.sin(turned)))
        total = total + envelope * wave * (i < count)
    return total[:, None]
