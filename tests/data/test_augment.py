"""Crops and flips: against a slow loop, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from atbench.data import Chain, Cutout, EdgePad, GaussianNoise, OneOf, PadCropFlip, View, canvas_pad
from atbench.errors import ConfigError
from tests.support.augmentation import draws, images

MODES = pytest.mark.parametrize("mode", ["constant", "reflect"])


def slow(image: Tensor, pad: int, mode: str, top: int, left: int, flip: bool) -> Tensor:
    canvas = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode=mode))  # type: ignore[call-overload]
    crop = canvas[:, top : top + image.shape[1], left : left + image.shape[2]]
    return crop.flip(2) if flip else crop


@MODES
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_apply_equals_pad_crop_flip_one_by_one(pad: int, flip: bool, mode: str) -> None:
    x = images()
    out, view = PadCropFlip(pad, flip, mode)(x, draws())
    rows = zip(x, view.top.tolist(), view.left.tolist(), view.flip.tolist(), strict=True)
    assert torch.equal(out, torch.stack([slow(image, pad, mode, *where) for image, *where in rows]))


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_put_back_on_its_padded_canvas(pad: int, flip: bool) -> None:
    """One by one: the window of the canvas at (top, left) is the view, not flipped; the mask is the window."""
    v = images()
    _, view = PadCropFlip(pad, flip)(v, draws())
    canvas, shown = view.invert_padded(v)
    assert canvas.shape == (40, 2, 6 + 2 * pad, 8 + 2 * pad) and shown.shape == (40, 1, 6 + 2 * pad, 8 + 2 * pad)
    for i, (top, left, mirrored) in enumerate(
        zip(view.top.tolist(), view.left.tolist(), view.flip.tolist(), strict=True)
    ):
        expected, window = torch.zeros_like(canvas[i]), torch.zeros_like(shown[i])
        expected[:, top : top + 6, left : left + 8] = v[i].flip(2) if mirrored else v[i]
        window[:, top : top + 6, left : left + 8] = True
        assert torch.equal(canvas[i], expected) and torch.equal(shown[i], window)
    assert torch.equal(view.apply_padded(canvas), v), "margins included"


@MODES
def test_what_one_view_writes_another_shows(mode: str) -> None:
    """Written through one view, the canvas shows it to another where both overlap, and the old pixels elsewhere; how
    images are padded has nothing to do with it.
    """
    old = -images(40, 2, 6 + 4, 8 + 4)
    (new, first), (_, second) = (
        PadCropFlip(2, True, mode)(images(), draws()),
        PadCropFlip(2, True, mode)(images(), draws(1)),
    )
    canvas, shown = first.invert_padded(new)
    written = torch.where(shown, canvas, old)
    assert torch.equal(first.apply_padded(written), new)
    seen, overlap = second.apply_padded(written), second.apply_padded(shown.double()) == 1
    assert overlap.any() and not overlap.all()
    assert torch.equal(seen, torch.where(overlap, second.apply_padded(canvas), second.apply_padded(old)))


def test_the_margin_of_an_augmentation_s_canvas() -> None:
    crop, hole = PadCropFlip(3, True), Cutout(3)
    assert [canvas_pad(each) for each in (None, hole, crop, Chain([hole, crop, GaussianNoise(0.1)]))] == [0, 0, 3, 3]
    for unknown in (
        EdgePad(0.1),
        OneOf([crop]),
        Chain([crop, EdgePad(0.1)]),
        lambda images, rng: (images.flip(3), None),
    ):
        with pytest.raises(ConfigError, match=r"dataset\.augment: \w+ .* put back"):
            canvas_pad(unknown)


def test_a_constant_margin_has_the_value_of_fill() -> None:
    x = images()
    grey, view = PadCropFlip(2, True, fill=0.5)(x, draws())
    black, _ = PadCropFlip(2, True)(x, draws())
    margin = view.apply(torch.ones_like(x)) == 0
    assert margin.any() and torch.equal(grey, torch.where(margin, 0.5, black))
    with pytest.raises(ConfigError, match=r"dataset\.augment\.fill: 0\.5 .* reflect padding"):
        PadCropFlip(2, True, "reflect", 0.5)


def test_an_unknown_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.padding_mode: mirror"):
        PadCropFlip(4, True, "mirror")


def test_all_crops_and_both_flips_are_drawn_alike() -> None:
    _, view = PadCropFlip(2, True)(images(6000, 1, 4, 4), draws())
    for offsets in (view.top, view.left):
        share = torch.bincount(offsets, minlength=5) / len(offsets)
        assert len(share) == 5 and (share - 0.2).abs().max() < 0.02
    assert view.flip.double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_turning_the_flip_off_leaves_the_crops() -> None:
    _, with_flip = PadCropFlip(2, True)(images(), draws())
    _, without = PadCropFlip(2, False)(images(), draws())
    assert (
        torch.equal(with_flip.top, without.top) and torch.equal(with_flip.left, without.left) and not without.flip.any()
    )


def test_two_ranks_see_the_views_of_one() -> None:
    x = images()
    whole, _ = PadCropFlip(1, True)(x, draws())
    parts = [PadCropFlip(1, True)(x[20 * rank : 20 * rank + 20], draws(0, rank, 2))[0] for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_the_image_itself_is_one_of_the_views() -> None:
    x = images(3)
    centre = torch.full((3,), 2)
    view = View(2, centre, centre, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(view.apply(x), x)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 20])
def test_cutout_blanks_one_square_and_nothing_else(length: int) -> None:
    x = images(300, 2, 6, 8)
    out, view = Cutout(length)(x, draws())
    hole = out == 0
    assert view is None and torch.equal(out[~hole], x[~hole])
    assert torch.equal(hole[:, :1].expand_as(hole), hole), "all channels alike"
    for axis, side in ((2, 6), (1, 8)):
        line = hole[:, 0].any(dim=axis)
        run = (line.int().diff(dim=1) != 0).sum(dim=1)
        assert (run <= 2).all() and int(line.sum(dim=1).max()) == min(length, side)
    assert torch.equal(hole[:, 0], hole[:, 0].any(2)[:, :, None] & hole[:, 0].any(1)[:, None, :]), "a rectangle"


def test_cutout_centres_are_everywhere_alike() -> None:
    out, _ = Cutout(1)(images(4800, 1, 6, 8), draws())
    share = (out == 0).double().mean(dim=(0, 1))
    assert share.min() > 0.6 / 48 and share.max() < 1.5 / 48 and share.sum().item() == pytest.approx(1)


def test_a_chain_is_its_steps_and_keeps_the_one_view() -> None:
    x = images()
    both, view = Chain([PadCropFlip(1, True), Cutout(3)])(x, draws())
    joint = draws()
    first, alone = PadCropFlip(1, True)(x, joint)
    second, _ = Cutout(3)(first, joint)
    assert torch.equal(both, second) and view is not None and torch.equal(view.top, alone.top)
    halves = [Chain([PadCropFlip(1, True), Cutout(3)])(x[20 * r : 20 * r + 20], draws(0, r, 2))[0] for r in range(2)]
    assert torch.equal(torch.cat(halves), both)
    with pytest.raises(ConfigError, match="two crops"):
        Chain([PadCropFlip(1, True)] * 2)(x, draws())


def test_gaussian_noise_is_on_a_share_of_the_images_and_leaves_the_box() -> None:
    x = images(400)
    out, view = GaussianNoise(0.5, 0.3)(x, draws())
    noise = (out - x).flatten(1)
    noisy = noise.abs().amax(dim=1) > 0
    assert view is None and noisy.double().mean().item() == pytest.approx(0.3, abs=0.07)
    assert noise[noisy].std().item() == pytest.approx(0.5, rel=0.03) and out.min() < 0
    assert torch.equal(GaussianNoise(0.0)(x, draws())[0], x)
