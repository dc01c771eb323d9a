"""JPEG against the standard's formulas, elastic deformation against shifts and the Gaussian."""

from __future__ import annotations

import itertools
from math import ceil, cos, exp, pi, sqrt

import pytest
import torch
from torch import Tensor

from atbench.attacks.unforeseen import jpeg_codec
from atbench.attacks.unforeseen.elastic import Elastic, gaussian_line
from atbench.attacks.unforeseen.jpeg import JPEGL1
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.runs.seeding import ExampleDraws
from tests.support.distortions import made, pictures


def slow_dct(block: Tensor) -> Tensor:
    """ITU-T T.81, A.3.3, term by term."""
    out = torch.zeros(8, 8, dtype=torch.float64)
    for u, v in itertools.product(range(8), repeat=2):
        total = sum(
            float(block[i, j]) * cos((2 * i + 1) * u * pi / 16) * cos((2 * j + 1) * v * pi / 16)
            for i, j in itertools.product(range(8), repeat=2)
        )
        out[u, v] = total / 4 * (1 / sqrt(2) if u == 0 else 1) * (1 / sqrt(2) if v == 0 else 1)
    return out


def test_jpegs_coefficients_are_those_of_the_standard() -> None:
    x = pictures(32, 1)
    red, green, blue = 255 * x[0]
    coefficients = jpeg_codec.encode(x)[0]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue - 128
    block = coefficients[64 * 6 : 64 * 7].view(8, 8)  # row 1, column 2 of four in a row
    assert torch.allclose(block * torch.tensor(jpeg_codec.LUMA), slow_dct(luma[8:16, 16:24]), atol=1e-9)
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue
    halved = (cr[::2, ::2] + cr[1::2, ::2] + cr[::2, 1::2] + cr[1::2, 1::2]) / 4
    block = coefficients[1024 + 256 + 64 * 1 : 1024 + 256 + 64 * 2].view(8, 8)
    assert torch.allclose(block * torch.tensor(jpeg_codec.CHROMA), slow_dct(halved[:8, 8:]), atol=1e-9)


def test_jpeg_without_rounding_returns_an_image_with_colours_of_two_by_two() -> None:
    coarse = torch.rand(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(jpeg_codec.decode(jpeg_codec.encode(x), 32, 48), x, atol=1e-5)
    grey = torch.rand(2, 1, 32, 48, dtype=torch.float64).expand(-1, 3, -1, -1)
    assert torch.allclose(jpeg_codec.decode(jpeg_codec.encode(grey), 32, 48), grey, atol=1e-5)


def test_jpegs_z_is_half_a_step_of_quantisation() -> None:
    distortion = made("jpeg_linf", 1.0, n=1)
    distortion.x.mul_(0.2).add_(0.4)  # far from black and white
    distortion = DISTORTIONS["jpeg_linf"](distortion.x, 1.0, distortion.rng)
    z = torch.zeros(1, 1536, 1, 1, dtype=torch.float64)
    z[0, 64 * 5] = 0.5  # the mean of one block
    moved = distortion.render(z) - distortion.render(torch.zeros_like(z))
    assert torch.allclose(moved[0, :, 8:16, 8:16], torch.full((3, 8, 8), 0.25 * 16 / 8 / 255, dtype=torch.float64))
    assert float(moved.abs().sum()) == pytest.approx(192 * 0.5 / 255)


def test_jpeg_l1_steps_within_the_room_from_where_it_is() -> None:
    distortion = made("jpeg_l1", 5.0, n=1)
    assert isinstance(distortion, JPEGL1)
    grad = torch.zeros(1, 1536, 1, 1, dtype=torch.float64)
    grad[0, 7], grad[0, 3], grad[0, 9], grad[0, 5] = 3.0, -2.0, 1.0, 0.5
    start = distortion.start()
    first = distortion.step(start, grad, 9, 0)
    assert [float(first[0, j]) for j in (7, 3, 9, 5)] == pytest.approx([2.0, -2.0, 1.0, 0.0]), "the start is forgotten"
    second = distortion.step(first, grad, 9, 1)  # room: 0, 0, 1 and 2 up
    assert [float(second[0, j]) for j in (7, 3, 9, 5)] == pytest.approx([1.0, -1.0, 1.0, 1.0])


def test_a_flow_of_zero_is_the_identity_and_a_constant_one_a_shift() -> None:
    distortion = made("elastic", 8.0)
    side = 32
    zero = torch.zeros(3, 2, side, side, dtype=torch.float64)
    assert torch.allclose(distortion.render(zero), distortion.x, atol=1e-12)
    flow = zero.clone()
    flow[:, 0] = side / (side - 1)  # one pixel to the right: middles lie 2 / (side − 1) apart
    shifted = distortion.render(flow)
    assert torch.allclose(shifted[..., :-1], distortion.x[..., 1:], atol=1e-9)
    assert float(shifted[..., -1].abs().max()) < 1e-9, "black comes in"
    flow = zero.clone()
    flow[:, 1] = side / (side - 1)
    assert torch.allclose(distortion.render(flow)[:, :, :-1], distortion.x[:, :, 1:], atol=1e-9)


def test_the_flow_is_smoothed_by_the_authors_gaussian() -> None:
    assert [len(gaussian_line(3 * side / 224)) for side in (224, 32)] == [25, 5]
    deviation = 3 * 32 / 224
    weights = [exp(-(t**2) / (2 * deviation**2)) for t in range(-ceil(4 * deviation), ceil(4 * deviation) + 1)]
    line = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    x = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 3, 32, 32)  # moved right by t it rises by t / 31
    distortion = Elastic(x, 1.0, ExampleDraws(0, index=torch.arange(1)))
    flow = torch.zeros(1, 2, 32, 32, dtype=torch.float64)
    flow[0, 0, 10, 12] = 1.0
    moved = (distortion.render(flow) - x)[0, 0] * 32
    assert torch.allclose(moved[8:13, 10:15], torch.outer(line, line), atol=1e-9)
    assert float(moved.sum()) == pytest.approx(1.0)
