"""All corruptions: legal images, the same in any batch, stronger with severity; a split seen through one; refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Images
from atbench.data.corruptions import CORRUPTIONS, CorruptedImages, corrupt
from atbench.errors import ConfigError, DataError
from atbench.runs.seeding import ExampleDraws

#: Several numbers of these change from one severity to the next, not all towards more (table.py).
MIXED = {"glass_blur", "procedural_frost", "elastic_transform"}
#: No random number: equal images stay equal.
FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def images(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Patches of colour of several sizes, with edges, over all grey levels."""
    source = torch.Generator().manual_seed(0)
    out = torch.zeros(n, channels, height, width)
    for cells in (2, 7, 13):  # edges do not lie where blocks of pixels end
        coarse = torch.rand((n, channels, cells, cells), generator=source)
        out += F.interpolate(coarse, size=(height, width), mode="nearest" if cells == 7 else "bilinear") / 3
    return (255 * out).round().to(torch.uint8)


def draws(n: int, seed: int = 0) -> ExampleDraws:
    return ExampleDraws(seed, "test", index=torch.arange(n))


def distance(one: Tensor, other: Tensor) -> float:
    """Mean L2 distance, in [0, 1] pixels."""
    return ((one.double() - other.double()) / 255).flatten(1).norm(dim=1).mean().item()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 11), (1, 28, 28), (3, 40, 33)], ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_uint8_in_and_out_and_the_input_untouched(name: str, shape: tuple[int, int, int]) -> None:
    x = images(3, *shape)
    before = x.clone()
    for severity in (1, 5):
        out = corrupt(x, name, severity, draws(3))
        assert out.dtype == torch.uint8 and out.shape == x.shape and not torch.equal(out, x)
    assert torch.equal(x, before)
    assert torch.equal(corrupt(x, name, 0, draws(3)), x)
    assert corrupt(x[:0], name, 3, draws(0)).shape == (0, *shape)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_moves_images_further(name: str) -> None:
    x = images(8)
    far = [distance(corrupt(x, name, severity, draws(8)), x) for severity in range(6)]
    assert far[0] == 0 and far[1] > 0.2
    if name not in MIXED:
        # Motion blur of severity 3 and 4 differs by what lies beyond six standard deviations.
        assert all(later >= 0.999 * earlier for earlier, later in pairwise(far)), far
        assert far[5] > 1.25 * far[1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_example_is_the_same_in_any_batch(name: str) -> None:
    x = images(70)
    whole = corrupt(x, name, 4, draws(70))
    rows = torch.tensor([66, 2, 41])
    assert torch.equal(corrupt(x[rows], name, 4, draws(70).take(rows)), whole[rows])
    assert torch.equal(corrupt(x, name, 4, draws(70)), whole)
    alike = corrupt(x[:1].expand(2, -1, -1, -1), name, 4, draws(2))
    assert torch.equal(alike[0], alike[1]) == (name in FIXED)
    assert torch.equal(corrupt(x[:3], name, 4, draws(3, seed=1)), whole[:3]) == (name in FIXED)


def test_there_are_the_fifteen_of_the_paper_in_five_severities() -> None:
    assert len(CORRUPTIONS) == 15 and {len(one.levels) for one in CORRUPTIONS.values()} == {5}
    assert "frost" not in CORRUPTIONS, "without photographs it is another corruption"


@pytest.mark.parametrize(("name", "severity"), [("frost", 1), ("fog", 6), ("fog", -1)])
def test_what_there_is_not_is_refused(name: str, severity: int) -> None:
    with pytest.raises(ConfigError):
        corrupt(images(1), name, severity, draws(1))
    with pytest.raises(ConfigError):
        CorruptedImages(images(1), torch.zeros(1, dtype=torch.int64), name, severity, 0, torch.arange(1))


@pytest.mark.parametrize("bad", [images(1) / 255, images(1, 3, 7, 9), images(1, 2), images(1)[0]], ids=range(4))
def test_images_that_it_is_not_defined_for_are_refused(bad: Tensor) -> None:
    with pytest.raises(DataError):
        corrupt(bad, "fog", 1, draws(1))


def test_a_split_is_the_same_by_rows_by_slices_and_after_taking() -> None:
    x, y = images(70, 1, 8, 8), torch.arange(70) % 10
    view = CorruptedImages(x, y, "gaussian_noise", 3, 5, torch.arange(70))
    rng = ExampleDraws(5, "corruption", "gaussian_noise", index=torch.arange(70))
    whole = corrupt(x, "gaussian_noise", 3, rng).double() / 255
    assert torch.equal(view.floats(dtype=torch.float64), whole)
    assert torch.equal(view.floats(slice(60, 66), torch.float64), whole[60:66])
    rows = torch.tensor([68, 0, 7])
    assert torch.equal(view.floats(rows, torch.float64), whole[rows])
    taken = view.take(rows).to(torch.device("cpu"))
    assert isinstance(taken, CorruptedImages) and torch.equal(taken.y, y[rows])
    assert torch.equal(taken.floats(dtype=torch.float64), whole[rows])
    assert torch.equal(taken.take(torch.tensor([2])).floats(dtype=torch.float64), whole[7:8])
    assert isinstance(view, Images) and torch.equal(view.x, x), "the clean images stay"
