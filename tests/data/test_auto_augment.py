"""AutoAugment: the policy and every operation are torchvision's, drawn as often as they say, from joint numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from atbench.config.instantiate import build
from atbench.data import Chain, PadCropFlip
from atbench.data.auto_augment import CIFAR10_POLICY, AutoAugment, operate
from atbench.errors import ConfigError
from tests.support.augmentation import draws

THEIRS = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128)
LEVELS = sorted({operation for policy in CIFAR10_POLICY for operation in policy})


def their_name(name: str) -> str:
    return {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))


def photos(count: int, channels: int = 3, side: int = 32) -> Tensor:
    """Smooth 8-bit images of some contrast."""
    small = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    return (torch.nn.functional.interpolate(small, side, mode="bicubic").clamp(0, 1) * 255).round() / 255


def test_the_policy_is_torchvision_s() -> None:
    ours = [[(their_name(name), p, level) for name, p, level in policy] for policy in CIFAR10_POLICY]
    assert ours == [[(name, p, level or 0) for name, p, level in policy] for policy in THEIRS._policies]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "level"), sorted({(name, level) for name, _, level in LEVELS}))
def test_an_operation_is_torchvision_s(name: str, level: int, channels: int) -> None:
    """For both signs, several images at once; shears are bilinear here."""
    pixels = (photos(4, channels) * 255).round().to(torch.uint8)
    magnitudes, signed = THEIRS._AUGMENTATION_SPACE[their_name(name)]
    strengths = magnitudes(10, 32, 32)
    kind = v2.InterpolationMode.BILINEAR if name.startswith("shear") else v2.InterpolationMode.NEAREST
    for sign in (1, -1):
        strength = 0.0 if strengths is None else float(strengths[level]) * (sign if signed else 1)
        apply = THEIRS._apply_image_or_video_transform
        alone = [apply(image, their_name(name), strength, kind, THEIRS._fill) for image in pixels]
        difference = (operate(pixels, name, sign * level, 128).int() - torch.stack(alone).int()).abs()
        # Their strengths are float32: 0.4 · 120 is 47 there, cut off to a whole number.
        assert difference.max() <= (name in ("brightness", "color", "contrast", "sharpness", "shear_y"))
        assert (difference > 0).double().mean() < 0.3


def test_sub_policies_run_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected number of runs of each operation and level over 50,000 images, with either sign alike."""
    seen: Counter[tuple[str, int]] = Counter()

    def count(pixels: Tensor, name: str, level: int, fill: int) -> Tensor:
        seen[name, level] += len(pixels)
        return pixels

    monkeypatch.setattr("atbench.data.auto_augment.operate", count)
    AutoAugment()(torch.zeros(50_000, 1, 1, 1), draws())
    expected: Counter[tuple[str, int]] = Counter()
    for policy in CIFAR10_POLICY:
        for name, p, level in policy:
            for signed in (level, -level):
                expected[name, signed] += p * 1000  # type: ignore[assignment]  # 2,000 images a sub-policy
    assert {place for place in expected if expected[place]} == set(seen)
    for place, number in seen.items():
        assert number == pytest.approx(expected[place], abs=6 * expected[place] ** 0.5), place


def test_each_image_is_its_own_sub_policy_in_order() -> None:
    """Against one image after the other: both operations of one sub-policy, the second on what the first left."""
    x = photos(200)
    out, view = AutoAugment(fill=0.0)(x, draws())
    unit = (draws().uniform(torch.empty(200, 5, dtype=torch.float64)) + 1) / 2
    for image, got, (which, *runs_and_signs) in zip(x, out, unit.tolist(), strict=True):
        pixels = (image[None] * 255).round().to(torch.uint8)
        for (name, p, level), run, sign in zip(
            CIFAR10_POLICY[int(25 * which)], runs_and_signs[:2], runs_and_signs[2:], strict=True
        ):
            pixels = operate(pixels, name, level if sign < 0.5 else -level, 0) if run < p else pixels
        assert torch.equal(got, pixels[0].to(x.dtype) / 255)
    assert view is None and 0.02 < (out == x).flatten(1).all(dim=1).double().mean() < 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_ranks_see_the_images_of_one(dtype: torch.dtype) -> None:
    augment = Chain([AutoAugment(), PadCropFlip(4, True)])
    x = photos(40).to(dtype)
    whole, _ = augment(x, draws())
    parts = [augment(x[20 * rank : 20 * rank + 20], draws(0, rank, 2))[0] for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole) and whole.dtype == dtype
    assert not torch.equal(augment(x, draws(1))[0], whole)


def test_it_is_built_from_a_configuration_and_refuses_other_images() -> None:
    augment = build({"_target_": "atbench.data.auto_augment.AutoAugment", "fill": 0.5}, "dataset.augment.0")
    assert augment.fill == 128
    with pytest.raises(ConfigError, match=r"dataset\.augment: AutoAugment .* 2 channels"):
        augment(torch.zeros(1, 2, 8, 8), draws())
