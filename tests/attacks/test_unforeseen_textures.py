"""Fog, snow and Gabor noise against slow computations and what their formulas say."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.unforeseen.gabor import Gabor, gabor_filters
from atbench.attacks.unforeseen.weather import Fog, Snow, diamond_square, flake_kernels
from atbench.runs.seeding import ExampleDraws
from tests.support.distortions import made


def test_fog_is_scaled_and_even_fog_changes_nothing() -> None:
    distortion = made("fog", 2048.0)
    z = distortion.start()
    assert z.shape == (3, 3 * (4**7 - 1) // 3, 1, 1)
    fog = (
        distortion.render(z) * (255 * distortion.x.amax(dim=(2, 3), keepdim=True) + 2048) - 255 * distortion.x
    ) / 2048
    assert float(fog.min()) > -1e-9 and float(fog.max()) < 1 + 1e-9 and float(fog.std()) > 0.05
    assert torch.allclose(fog[:, 0], fog[:, 2]), "one fog for all channels"


def slow_fractal(z: Tensor, scales: int) -> Tensor:
    """Point by point, one image: the neighbours that `diamond_square` names, on a torus."""
    side, at = 2**scales, 0
    field = torch.zeros(side, side, dtype=torch.float64)
    for level in range(scales):
        count, step, width = 2**level, side // 2**level, 100.0 / 2.0**level
        corner = field[::step, ::step]
        middle, across = field[step // 2 :: step, step // 2 :: step], field[::step, step // 2 :: step]
        below = field[step // 2 :: step, ::step]
        for kind, place in enumerate((middle, across, below)):
            for i, j in itertools.product(range(count), repeat=2):
                down, right = (i + 1) % count, (j + 1) % count
                if kind == 0:
                    near = corner[i, j] + corner[down, j] + corner[i, right] + corner[down, right]
                elif kind == 1:
                    near = middle[i, j] + middle[(i - 2) % count, j] + corner[i, j] + corner[i, right]
                else:
                    near = middle[i, j] + middle[i, (j - 2) % count] + corner[i, j] + corner[down, j]
                place[i, j] = near / 4 + width * (2 * z[at] - 1)
                at += 1
    return field


def test_the_fractal_is_a_slow_one() -> None:
    z = torch.rand(2, 3 * (1 + 4 + 16), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([slow_fractal(one, 3) for one in z])
    assert torch.allclose(diamond_square(z, 3, 100.0, 2.0), expected, atol=1e-12)


def test_snow_pales_the_image_and_adds_flakes() -> None:
    distortion = made("snow", 0.5)
    assert isinstance(distortion, Snow)
    x, none = distortion.x, torch.zeros(3, 7, 16, 16, dtype=torch.float64)
    grey = 0.2126 * x[:, 0:1] + 0.7152 * x[:, 1:2] + 0.0722 * x[:, 2:3]
    paler = (0.75 * x + 0.25 * torch.maximum(x, 1.5 * grey + 0.5)).clamp(0, 1)
    assert torch.allclose(distortion.render(none), paler, atol=1e-12)
    one = none.clone()
    one[1, 5, 4, 6] = 0.5  # the second grid of rows: row 4·4 + 2, column 4·6
    dark = Snow(torch.zeros_like(x), 0.5, distortion.rng)
    moved = dark.render(one) - dark.render(none)
    assert torch.allclose(moved[1, 0, 12:25, 18:31], 0.5 * 0.5**4 * distortion.kernels[1, 5].flip((-1, -2)), atol=1e-9)
    assert float(moved[0].abs().max()) == float(moved[2].abs().max()) == 0


def test_snow_stays_within_its_budget() -> None:
    distortion = made("snow", 0.5)
    z = torch.rand(3, 7, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) * 1.5
    z[:, :, :8, :8] *= 0.1
    limited = distortion.step(z, torch.zeros_like(z), 4, 0)
    means = F.avg_pool2d(limited, 8)
    assert float(means.max()) <= 0.2 + 1e-12 and torch.allclose(limited[:, :, :8, :8], z[:, :, :8, :8])
    assert torch.allclose(means[:, :, 1, 1], torch.full((3, 7), 0.2, dtype=torch.float64))


def test_flakes_are_symmetric_strokes() -> None:
    kernels = flake_kernels(torch.zeros(20, 7, dtype=torch.float64), ExampleDraws(0, index=torch.arange(20)))
    assert kernels.shape == (20, 7, 13, 13)
    assert torch.allclose(kernels, kernels.flip((-1, -2)), atol=1e-12)
    quarters = kernels[:, :, 8:, 8:].sum(dim=(1, 2, 3)), kernels[:, :, 8:, :5].sum(dim=(1, 2, 3))
    mirrored = quarters[0] < quarters[1]
    assert bool(mirrored.any()) and not bool(mirrored.all())


def test_gabor_noise_is_even_and_starts_sparse() -> None:
    distortion = made("gabor", 100.0)
    assert isinstance(distortion, Gabor)
    start = distortion.start()
    share = float((start != 0).double().mean())
    assert abs(share - 1 / 14) < 0.01
    moved = distortion.step(start, torch.ones_like(start), 200, 0)
    assert bool((moved[start != 0] == 0).all()) and bool((moved[start == 0] > 0).all())
    dark = Gabor(torch.zeros_like(distortion.x), 255.0, distortion.rng)
    noise = dark.render(start)
    assert torch.allclose(noise.amin(dim=(1, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(noise.amax(dim=(1, 2, 3)), torch.ones(3, dtype=torch.float64), atol=1e-9)
    assert torch.equal(noise[:, 0], noise[:, 1])


def test_gabor_filters_peak_in_the_middle() -> None:
    filters = gabor_filters(torch.zeros(30, dtype=torch.float64), ExampleDraws(0, index=torch.arange(30)))
    assert filters.shape == (30, 1, 23, 23)
    peaks = filters[:, 0, 11, 11]
    assert torch.allclose(peaks, peaks.round()) and {int(p) for p in peaks} <= set(range(1, 11)), "the directions"
    assert torch.allclose(filters, filters.flip((-1, -2)), atol=1e-12)


def test_fog_of_large_images_is_cut_out_of_a_power_of_two() -> None:
    x = torch.full((1, 3, 224, 224), 0.5)
    fog = Fog(x, 128.0, ExampleDraws(0, index=torch.arange(1)))
    assert fog.start().shape == (1, 65535, 1, 1)
