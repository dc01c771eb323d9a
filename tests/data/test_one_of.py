"""CCAT's augmentation: padding by the edge, brightness, and one of several for each image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atbench.data import Brightness, EdgePad, OneOf, PadCropFlip
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws
from tests.support.augmentation import draws, images


class Given(Draws):
    """The same uniform numbers at every call."""

    def __init__(self, values: list[list[float]]) -> None:
        self.values = torch.tensor(values, dtype=torch.float64)

    def uniform(self, like: torch.Tensor) -> torch.Tensor:
        return 2 * self.values.view(like.shape) - 1


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0, 0.0), (1.0, 0.5, 0.0, 0.99), (0.3, 0.8, 0.6, 0.2)])
def test_an_edge_pad_is_torch_s_pad_and_resize(shares: tuple[float, ...]) -> None:
    """top, left, bottom, right; `interpolate` and cv2's INTER_LINEAR, which imgaug calls, are the same function."""
    x = images(1, height=10, width=20)
    out, view = EdgePad(0.2)(x, Given([list(shares)]))
    top, left, bottom, right = (round(0.2 * s * side) for s, side in zip(shares, (10, 20, 10, 20), strict=True))
    padded = F.pad(x, (left, right, top, bottom), mode="replicate")
    expected = F.interpolate(padded, size=(10, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert view is None and torch.allclose(out, x, rtol=0, atol=1e-12) == (not any(shares))


def test_brightness_is_a_factor_an_image() -> None:
    x = images(3)
    out, _ = Brightness(0.7, 1.3)(x, Given([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(out, (x * torch.tensor([0.7, 1.0, 1.3]).double().view(3, 1, 1, 1)).clamp(0, 1))


def test_each_image_is_one_of_the_choices() -> None:
    x = images(300)
    choices = [EdgePad(0.2), PadCropFlip(0, flip=True), Brightness(0.7, 0.9)]
    out, view = OneOf(choices)(x, draws())
    dark = (out / x).flatten(1).std(dim=1) < 1e-9
    same = (out == x).flatten(1).all(dim=1)
    flipped = (out == x.flip(3)).flatten(1).all(dim=1)
    rest = ~((dark & ~same) | same | flipped)
    shares = [float(part.double().mean()) for part in (dark & ~same, same, flipped, rest)]
    assert shares == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3], abs=0.08) and view is None
    parts = [OneOf(choices)(x[150 * rank : 150 * (rank + 1)], draws(0, rank, 2))[0] for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), out)


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.augment"):
        OneOf([])
