"""Each corruption against its definition: closed forms, limits in which nothing changes, slow references."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from io import BytesIO
from math import cos, exp, radians, sin

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from atbench.data.corruptions import blur, digital, fields, noise, weather
from atbench.runs.seeding import ExampleDraws


def images(n: int = 4, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    """Any grey levels at all, as float64 in [0, 1]."""
    source = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, channels, height, width), generator=source).double() / 255


def draws(n: int = 4, seed: int = 0) -> ExampleDraws:
    return ExampleDraws(seed, "forms", index=torch.arange(n))


def near(one: Tensor, other: Tensor | np.ndarray, atol: float = 1e-12) -> bool:
    return torch.allclose(one, torch.as_tensor(other, dtype=torch.float64), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("apply", "parameters"),
    [
        (noise.gaussian_noise, (0,)),
        (noise.impulse_noise, (0,)),
        (blur.defocus_blur, (0.9, 0)),
        (blur.glass_blur, (0, 1, 0)),
        (blur.motion_blur, (6, 1e-3)),
        (blur.zoom_blur, (0,)),
        (weather.snow, (0, 0, 2, 0.5, 4, 2, 1)),
        (weather.procedural_frost, (1, 0)),
        (weather.fog, (0, 2)),
        (weather.brightness, (0,)),
        (digital.contrast, (1,)),
        (digital.elastic_transform, (0, 0.1, 0)),
        (digital.pixelate, (1,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_strength_is_no_change(apply: Callable[..., Tensor], parameters: tuple[float, ...]) -> None:
    for channels in (1, 3):
        x = images(channels=channels)
        assert near(apply(x, draws(), *parameters), x)


def test_gaussian_noise_has_its_deviation() -> None:
    x = images(64, height=20, width=20)
    added = noise.gaussian_noise(x, draws(64), 0.08) - x
    assert added.std().item() == pytest.approx(0.08, rel=0.02) and abs(added.mean().item()) < 1e-3


@pytest.mark.parametrize("photons", [50, 500])
def test_shot_noise_is_the_poisson_quantile_of_its_uniform_number(photons: float) -> None:
    x = images(8)
    u = fields.unit(draws(8), x, *x.shape[1:]).numpy()
    expected = stats.poisson.ppf(u, x.numpy() * photons) / photons
    assert near(noise.shot_noise(x, draws(8), photons), np.where(x.numpy() == 0, 0, expected))


def test_impulse_noise_is_as_much_salt_as_pepper() -> None:
    x = images(64, height=20, width=20) * 0.5 + 0.25
    out = noise.impulse_noise(x, draws(64), 0.1)
    for value in (0, 1):
        assert (out == value).double().mean().item() == pytest.approx(0.05, rel=0.05)
    assert torch.equal(out[(out != 0) & (out != 1)], x[(out != 0) & (out != 1)])


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_gaussian_blur_is_scipys(sigma: float) -> None:
    x = images(2)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    assert near(blur.gaussian(x, sigma), expected)


def test_defocus_spreads_a_point_over_a_disc() -> None:
    point = torch.zeros(1, 1, 9, 11, dtype=torch.float64)
    point[..., 4, 5] = 1
    out = blur.defocus_blur(point, draws(1), 2, 0)[0, 0]
    inside = [(r, c) for r in range(9) for c in range(11) if (r - 4) ** 2 + (c - 5) ** 2 <= 4]
    assert len(inside) == 13 and near(out.sum(), 1.0)
    assert all(near(out[place], 1 / 13) for place in inside)
    wide = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    wide[..., 32, 32] = 1
    assert int((blur.defocus_blur(wide, draws(1), 2, 0) > 0).sum()) == 49, "radius 4: lengths grow with the image"


def test_glass_swaps_in_order_and_loses_no_pixel() -> None:
    x = images()
    rng, height, width = draws(), *x.shape[2:]
    out = blur.glass_blur(x, draws(), 0, 2, 2)
    expected = x.clone().numpy()
    for _ in range(2):
        offset = (4 * fields.unit(rng, x, 2, height * width)).floor().long() - 2
        for b in range(len(x)):
            for h in range(height - 2, 1, -1):
                for w in range(width - 2, 1, -1):
                    to = (h + int(offset[b, 0, h * width + w]), w + int(offset[b, 1, h * width + w]))
                    held = expected[b, :, h, w].copy()
                    expected[b, :, h, w] = expected[b, :, *to]
                    expected[b, :, *to] = held
    assert near(out, expected)
    assert torch.equal(out.flatten(2).sort().values, x.flatten(2).sort().values) and not torch.equal(out, x)
    flat = torch.full_like(x, 0.3)
    assert near(blur.glass_blur(flat, draws(), 1.5, 2, 2), flat)


@pytest.mark.parametrize("degrees", [0, 30, -120])
def test_motion_is_half_a_gaussian_along_its_angle(degrees: float) -> None:
    x, angle = images(1), radians(degrees)
    weights = [exp(-(t**2) / (2 * 1.5**2)) for t in range(7)]
    expected = np.zeros(x.shape)
    for r in range(12):
        for c in range(10):
            for t, weight in enumerate(weights):
                row = min(max(r + round(t * sin(angle)), 0), 11)
                column = min(max(c + round(t * cos(angle)), 0), 9)
                expected[..., r, c] += weight / sum(weights) * x[..., row, column].numpy()
    assert near(blur.motion(x, torch.tensor([angle], dtype=torch.float64), 3, 1.5), expected)


def test_zoom_enlarges_a_slope_about_the_middle() -> None:
    slope = torch.arange(12, dtype=torch.float64).expand(2, 3, 12, 12) / 11
    middle = 5.5 / 11
    assert near(blur.zoom(slope, 2.0), middle + (slope - middle) / 2)
    assert near(blur.zoom(slope.mT, 1.25), middle + (slope.mT - middle) / 1.25)
    factors = [1.0, 1.0, 1.01, 1.02]
    expected = middle + (slope - middle) * sum(1 / factor for factor in factors) / 4
    assert near(blur.zoom_blur(slope, draws(2), 2), expected)


def plasma_by_loops(noise: np.ndarray, decay: float) -> np.ndarray:
    n, field = len(noise), np.zeros_like(noise)
    step, amplitude = n, 1.0
    while step > 1:
        half = step // 2
        diagonal, straight = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
        middles = [(r, c) for r in range(half, n, step) for c in range(half, n, step)]
        edges = [(r, c) for r in range(0, n, half) for c in range(0, n, half) if (r // half + c // half) % 2]
        for places, around in ((middles, diagonal), (edges, straight)):
            for r, c in places:
                beside = [field[(r + half * a) % n, (c + half * b) % n] for a, b in around]
                field[r, c] = sum(beside) / 4 + amplitude * noise[r, c]
        step, amplitude = half, amplitude / decay**2
    return (field - field.min()) / (field.max() - field.min())


def test_plasma_is_what_loops_over_diamonds_and_squares_give() -> None:
    x = images(2, 1, 16, 11)
    drawn = fields.uniform(draws(2), x, 16, 16)
    out = fields.plasma(draws(2), x, 1.5)
    for b in range(2):
        assert near(out[b, 0], plasma_by_loops(drawn[b].numpy(), 1.5)[:16, :11])


def test_fog_and_frost_are_mixtures_with_their_fields() -> None:
    x = images() * 0.6
    cloud = fields.plasma(draws(), x, 2.0)
    brightest = x.amax((1, 2, 3), keepdim=True)
    assert near(weather.fog(x, draws(), 0.7, 2.0), (x + 0.7 * cloud) * brightest / (brightest + 0.7))
    texture = weather.procedural_frost(torch.zeros_like(x), draws(), 0.9, 1.0)
    assert texture.min() >= 0 and texture.max() > 0.9 and torch.equal(texture[:, :1].expand_as(texture), texture)
    assert near(weather.procedural_frost(x, draws(), 0.9, 0.4), 0.9 * x + 0.4 * texture)


def test_snow_falls_the_same_when_turned_and_pales_what_it_falls_on() -> None:
    levels = (0.1, 0.3, 1.5, 0.3, 4, 2)
    black = torch.zeros(4, 3, 12, 10, dtype=torch.float64)
    flakes = weather.snow(black, draws(), *levels, 1.0)
    assert near(flakes, flakes.flip(2, 3)) and flakes.amax() > 0.2 and flakes.amin() == 0
    x = images()
    luma = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    pale = 0.8 * x + 0.2 * torch.maximum(x, 1.5 * luma + 0.5)
    assert near(weather.snow(x, draws(), *levels, 0.8), pale + flakes)
    assert near(weather.grey(x), luma) and torch.equal(weather.grey(x[:, :1]), x[:, :1])


def test_brightness_is_value_in_hsv() -> None:
    grey = images(channels=1)
    assert near(weather.brightness(grey, draws(), 0.3), (grey + 0.3).clamp(max=1))
    x = images(2)
    x[0, :, 0, 0] = 0
    out = weather.brightness(x, draws(2), 0.3)
    for b, r, c in np.ndindex(2, 12, 10):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[b, :, r, c].tolist())
        assert near(out[b, :, r, c], np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))))


def test_contrast_shrinks_about_each_channels_mean() -> None:
    x = images()
    out = digital.contrast(x, draws(), 0.4)
    assert near(out.mean((2, 3)), x.mean((2, 3)))
    assert near(out.std((2, 3)), 0.4 * x.std((2, 3)))


def slopes(height: int, width: int) -> Tensor:
    """(1, 3, H, W) whose channels are column, row and 0, in pixels: what a warp makes of it are the places it reads."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([column, row, torch.zeros_like(row)])[None].double()


def test_elastic_reads_where_a_blurred_field_points() -> None:
    x = slopes(20, 24)
    rng = draws(1)
    fields.uniform(rng, x, 3, 2)  # the points are drawn before the field
    drawn = fields.uniform(rng, x, 2, 20, 24).numpy()
    shift = 0.2 * 20 * ndimage.gaussian_filter(drawn, (0, 0, 2, 2), mode="nearest", truncate=3)
    moved = digital.elastic_transform(x, draws(1), 0.2, 0.1, 0.0) - x
    inside = (slice(None), slice(0, 2), slice(4, -4), slice(4, -4))
    assert near(moved[inside], shift[inside], 1e-9) and np.abs(shift).max() > 0.3


def test_elastic_takes_three_moved_points_back() -> None:
    x = slopes(24, 30)
    points = torch.tensor([[15 + 8, 12 + 8], [15 + 8, 12 - 8], [15 - 8, 12 - 8]]).double()
    moved = points + 0.05 * 24 * fields.uniform(draws(1), x, 3, 2)[0]
    out = digital.elastic_transform(x, draws(1), 0.0, 0.0, 0.05)[0]
    here = x[0, :2, 6:-6, 6:-6].flatten(1).T
    there = out[:2, 6:-6, 6:-6].flatten(1).T
    affine = torch.linalg.lstsq(torch.cat([here, torch.ones_like(here[:, :1])], dim=1), there).solution
    assert near(torch.cat([moved, torch.ones(3, 1)], dim=1) @ affine, points, 1e-9)


def test_pixelate_is_block_means() -> None:
    x = images(height=8, width=8)
    halves = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert near(digital.pixelate(x, draws(), 0.5), halves.repeat_interleave(2, 2).repeat_interleave(2, 3))
    once = digital.pixelate(images(), draws(), 0.65)
    assert near(digital.pixelate(once, draws(), 0.65), once) and near(once.mean((2, 3)), images().mean((2, 3)))
    assert all(len(channel.unique()) <= int(0.65 * 12) * int(0.65 * 10) + 8 for channel in once.flatten(0, 1).round())
    flat = torch.full_like(x, 0.3)
    assert near(digital.pixelate(flat, draws(), 0.7), flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    x = images(2, channels)
    buffer = BytesIO()
    pixels = (255 * x[1]).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "JPEG", quality=50)
    expected = np.asarray(Image.open(buffer)).reshape(12, 10, channels).transpose(2, 0, 1) / 255
    out = digital.jpeg_compression(x, draws(2), 50)
    assert near(out[1], expected) and near(out * 255, (out * 255).round(), 1e-9)
