"""IDBH: each part against torchvision or by hand, and what the settings of its authors come to."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

from atbench.data import Chain, Idbh, canvas_pad
from atbench.data.idbh import crop_shift, erase, operate, warp, whole
from atbench.errors import ConfigError
from atbench.workflows import factory
from tests.support.augmentation import draws
from tests.support.configs import resolved

WEAK = dict(resolved("dataset=cifar10", "plus=idbh").dataset.augment[0].operations)
NOTHING = {"crop": [0, 1], "operations": {}, "erase": 0.0, "area": [0.02, 0.33]}


def pictures(n: int = 40, channels: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    """8-bit pictures in [0, 1]; no pixel is 0, so that zeros are those that were put there."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (n, channels, height, width), generator=rng).double() / 255


def settings(cfg_words: list[str]) -> Idbh:
    augment, mix = factory.make_augment(resolved(*cfg_words))
    assert isinstance(augment, Idbh) and mix is None
    return augment


def test_crop_shift_by_hand() -> None:
    """Row by row: a window of (H − c_y) × (W − c_x) pixels is moved unchanged, and all others are 0."""
    x = pictures(3, height=5, width=6)
    cut, source, target = ([(2, 1), (0, 3), (4, 0)], [(1, 0), (0, 2), (4, 0)], [(0, 1), (0, 3), (2, 0)])
    found = crop_shift(x, *(torch.tensor(each) for each in (cut, source, target)))
    for i, ((cy, cx), (sy, sx), (ty, tx)) in enumerate(zip(cut, source, target, strict=True)):
        height, width = 5 - cy, 6 - cx
        wanted = torch.zeros_like(x[i])
        wanted[:, ty : ty + height, tx : tx + width] = x[i, :, sy : sy + height, sx : sx + width]
        assert torch.equal(found[i], wanted) and int((found[i] != 0).sum()) == 3 * height * width
    nothing = torch.zeros(3, 2, dtype=torch.long)
    assert torch.equal(crop_shift(x, nothing, nothing, nothing), x)


@pytest.mark.parametrize("name", ["saturation", "brightness", "contrast", "sharpness"])
def test_factors_are_torchvision_s_image_by_image(name: str) -> None:
    x, strength = pictures(5), torch.tensor([0.1, 0.5, 1.0, 1.4, 1.9], dtype=torch.float64)
    wanted = [getattr(V, f"adjust_{name}")(image, float(by)) for image, by in zip(x, strength, strict=True)]
    found = operate(x, name, strength, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_what_has_no_strength_is_torchvision_s_image_by_image(name: str) -> None:
    x = pictures(5) * 0.5 + 0.2
    x = (x * 255).round() / 255
    bytes_ = (x * 255).round().to(torch.uint8) if name == "equalize" else x
    wanted = torch.stack([getattr(V, name)(image) for image in bytes_]).double()
    found = operate(x, name, torch.zeros(5), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found, wanted / 255 if name == "equalize" else wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [-1, 1])
def test_turns_and_shears_are_torchvision_s(sign: int) -> None:
    """Pictures that are not square; the same pixel but for ties."""
    x, options = pictures(4), {"interpolation": InterpolationMode.NEAREST, "fill": [0.0]}
    angles = torch.tensor([1.0, 4.0, 10.0, 30.0], dtype=torch.float64) * sign
    first = torch.tensor([True, False, True, False])
    turned = torch.stack([V.rotate(image, float(by), **options) for image, by in zip(x, angles, strict=True)])
    assert (operate(x, "rotate", angles, first) == turned).double().mean() > 0.99
    shears = torch.tensor([0.05, 0.1, 0.15, 0.35], dtype=torch.float64) * sign
    degrees = [
        [math.degrees(by), 0.0] if axis else [0.0, math.degrees(by)] for by, axis in zip(shears, first, strict=True)
    ]
    wanted = [V.affine(image, 0.0, [0, 0], 1.0, by, **options) for image, by in zip(x, degrees, strict=True)]
    assert (operate(x, "shear", shears, first) == torch.stack(wanted)).double().mean() > 0.99
    assert torch.equal(warp(x, torch.eye(2, dtype=torch.float64).expand(4, 2, 2)), x)


def test_a_rectangle_is_erased() -> None:
    x = pictures(2)
    found = erase(x, torch.tensor([[2, 3], [0, 0]]), torch.tensor([[4, 5], [0, 0]]))
    wanted = x[0].clone()
    wanted[:, 2:6, 3:8] = 0
    assert torch.equal(found[0], wanted) and torch.equal(found[1], x[1])


@pytest.mark.parametrize(("words", "share"), [(["plus=idbh"], 0.5), (["plus=idbh_strong"], 1.0)])
def test_weak_and_strong_differ_in_how_often_they_erase(words: list[str], share: float) -> None:
    given = settings(["dataset=cifar10", *words])
    assert given.erase == share and given.crop == [0, 11] and sum(each[0] for each in given.operations.values()) == 1
    x = torch.ones(2000, 1, 32, 32)
    out, view = Idbh(**{**NOTHING, "erase": share})(x, draws())
    holes = (out == 0).flatten(1).double().mean(dim=1)
    assert view is None and float((holes > 0).double().mean()) == pytest.approx(share, abs=0.04)
    assert float(holes[holes > 0].min()) > 0.015 and float(holes.max()) < 0.35
    assert float(holes[holes > 0].mean()) == pytest.approx(0.175, abs=0.01), "U(0.02, 0.33)"


def test_the_setting_of_svhn() -> None:
    given = settings(["dataset=svhn", "plus=[awp,idbh_svhn]"])
    assert (given.crop, given.erase, given.area) == ([0, 9], 1.0, [0.02, 0.5])
    assert sum(each[0] for each in given.operations.values()) == pytest.approx(1)
    assert given.operations["rotate"] == [0.3, 1, 31]


def test_an_operation_comes_as_often_as_its_share_says() -> None:
    """Shears alone, in a quarter of the images: the others keep every pixel, and half are mirrored."""
    x = pictures(2000, channels=1, height=8, width=8)
    out, _ = Idbh(**{**NOTHING, "operations": {"shear": [0.25, 0.3, 0.35]}})(x, draws())
    same = (out == x).flatten(1).all(dim=1) | (out == x.flip(-1)).flatten(1).all(dim=1)
    assert float(same.double().mean()) == pytest.approx(0.75, abs=0.03)


def test_crops_take_up_to_ten_lines_of_both_axes() -> None:
    out, _ = Idbh(**{**NOTHING, "crop": [0, 11]})(torch.ones(3000, 1, 32, 32), draws())
    rows, columns = ((out != 0).flatten(1, 1).any(dim=axis).flatten(1).sum(dim=1) for axis in (3, 2))
    lines = 64 - rows - columns
    assert sorted(lines.unique().tolist()) == list(range(11))
    assert float(lines.double().mean()) == pytest.approx(5.0, abs=0.2)
    assert float(rows.double().mean()) == pytest.approx(float(columns.double().mean()), abs=0.2)


def test_an_image_is_augmented_alike_whatever_else_is_in_the_batch() -> None:
    """Two processes draw what one would, and a grey image is one too."""
    x, given = pictures(40, height=32, width=32), Idbh([0, 11], WEAK, 0.5, [0.02, 0.33])
    whole_batch, _ = Chain([given])(x, draws())
    halves = [given(x[20 * rank : 20 * rank + 20], draws(rank=rank, world=2))[0] for rank in (0, 1)]
    torch.testing.assert_close(torch.cat(halves), whole_batch)
    assert float(whole_batch.min()) >= 0 and float(whole_batch.max()) <= 1
    grey, _ = given(x[:, :1].float(), draws())
    assert grey.shape == (40, 1, 32, 32) and grey.dtype == torch.float32


def test_whole_numbers_are_equally_likely() -> None:
    unit = torch.linspace(0, 1, 4001, dtype=torch.float64)
    assert torch.bincount(whole(unit, 4).long()).tolist() == [1000, 1000, 1000, 1001]


@pytest.mark.parametrize("operations", [{"blur": [0.1, 1, 2]}, {"equalize": [0.7], "autocontrast": [0.5]}])
def test_what_it_does_not_know_is_refused(operations: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.augment\.operations"):
        Idbh(**{**NOTHING, "operations": operations})


def test_an_image_keeps_a_line() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.augment\.crop.*8×16"):
        Idbh([0, 11], WEAK, 0.5, [0.02, 0.33])(pictures(2, height=8), draws())


def test_a_method_that_puts_pixels_back_refuses_it() -> None:
    with pytest.raises(ConfigError, match="Idbh"):
        canvas_pad(Idbh(**NOTHING))
