"""Augmentation of whole batches on the device, and its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.config.ranges import AnyCount, Count, NotNegative, Share
from atbench.errors import ConfigError, refuse_unknown
from atbench.runs.seeding import Draws

PADDING_MODES = ("constant", "reflect")


@dataclass(frozen=True)
class View:
    """The crop and flip of each example: `top`, `left` (B,) offsets into the canvas padded by `pad`, `flip` (B,)
    booleans. `padding_mode`: `constant` (zeros) or `reflect` (mirrored at the edge pixels, which are not repeated).
    """

    pad: int
    top: Tensor
    left: Tensor
    flip: Tensor
    padding_mode: str = "constant"

    def split(self, count: int) -> list[View]:
        """Those of `count` equal parts of the examples."""
        placed = (each.chunk(count) for each in (self.top, self.left, self.flip))
        return [replace(self, top=top, left=left, flip=flip) for top, left, flip in zip(*placed, strict=True)]

    @staticmethod
    def join(parts: Sequence[View]) -> View:
        """The view of all examples of `parts`."""
        top, left, flip = (torch.cat([getattr(part, name) for part in parts]) for name in ("top", "left", "flip"))
        return replace(parts[0], top=top, left=left, flip=flip)

    def _pixels(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Example (B, 1, 1), and row (B, H, 1) and column (B, 1, W) of its padded canvas, that each pixel shows."""
        examples = torch.arange(len(self.top), device=self.top.device)
        rows = torch.arange(height, device=self.top.device)[None, :] + self.top[:, None]
        columns = torch.arange(width, device=self.top.device)[None, :].expand(len(self.top), -1)
        columns = torch.where(self.flip[:, None], width - 1 - columns, columns) + self.left[:, None]
        return examples[:, None, None], rows[:, :, None], columns[:, None, :]

    def apply(self, images: Tensor, fill: float = 0.0) -> Tensor:
        """(B, C, H, W) → the same shape: pad by `pad` (constant padding with `fill`), crop at (top, left), flip."""
        return self.apply_padded(F.pad(images, [self.pad] * 4, mode=self.padding_mode, value=fill or None))

    def apply_padded(self, canvas: Tensor) -> Tensor:
        """(B, C, H+2p, W+2p) → (B, C, H, W): crop at (top, left) and flip what is padded already."""
        examples, rows, columns = self._pixels(canvas.shape[2] - 2 * self.pad, canvas.shape[3] - 2 * self.pad)
        return canvas[examples, :, rows, columns].permute(0, 3, 1, 2).contiguous()

    def invert_padded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Put views (B, C, H, W) back on the padded canvas: (B, C, H+2p, W+2p), 0 in pixels that the view does not
        show, and the mask (B, 1, H+2p, W+2p) of those that it shows. `apply_padded(invert_padded(v)[0]) = v`.
        """
        batch, channels, height, width = images.shape
        canvas = images.new_zeros(batch, height + 2 * self.pad, width + 2 * self.pad, channels)
        shown = torch.zeros_like(canvas[..., :1], dtype=torch.bool)
        pixels = self._pixels(height, width)
        canvas[pixels], shown[pixels] = images.permute(0, 2, 3, 1), True
        return canvas.permute(0, 3, 1, 2).contiguous(), shown.permute(0, 3, 1, 2)


class PadCropFlip:
    """The field's standard augmentation: pad by `pad`, random crop to the old size, horizontal flip with probability ½.

    `padding_mode` is torchvision's: `constant` pads with `fill`, zeros if it is not given, `reflect` mirrors the image.
    """

    def __init__(self, pad: AnyCount, flip: bool, padding_mode: str = "constant", fill: Share = 0.0) -> None:
        refuse_unknown("dataset.padding_mode", padding_mode, PADDING_MODES)
        if fill and padding_mode != "constant":
            why = f"{padding_mode} padding has no value to fill with"
            raise ConfigError("dataset.augment.fill", fill, why, "use padding_mode=constant, or leave fill out")
        self.pad, self.flip, self.padding_mode, self.fill = pad, flip, padding_mode, fill

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, View]:
        """Augmented images and the view that made them; `rng` gives each example's crop and flip."""
        # One draw of three numbers an example, whatever is switched on: turning the flip off leaves the crops as they
        # were.
        unit = (rng.uniform(torch.empty(len(images), 3, dtype=torch.float64, device=images.device)) + 1) / 2
        offsets = (unit[:, :2] * (2 * self.pad + 1)).long().clamp_(max=2 * self.pad)
        flip = (unit[:, 2] < 0.5) & self.flip
        view = View(self.pad, offsets[:, 0], offsets[:, 1], flip, self.padding_mode)
        return view.apply(images, self.fill), view


class Cutout:
    """A square of side `length` around a uniform centre becomes 0; what lies outside the image is cut off (DeVries &
    Taylor 2017, arXiv 1708.04552).
    """

    def __init__(self, length: Count) -> None:
        self.length = length

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Images with their square blanked. No view: nothing is moved."""
        height, width = images.shape[2:]
        unit = (rng.uniform(torch.empty(len(images), 2, dtype=torch.float64, device=images.device)) + 1) / 2
        inside = []
        for axis, side in ((0, height), (1, width)):
            start = (unit[:, axis] * side).long().clamp_(max=side - 1) - self.length // 2
            offset = torch.arange(side, device=images.device)[None, :] - start[:, None]
            inside.append((offset >= 0) & (offset < self.length))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(hole, 0.0), None


class EdgePad:
    """Each side padded by the edge's pixels, by round(U(0, `share`) · side), and the image shrunk back to its size by
    linear interpolation: imgaug's CropAndPad(percent=(0, share), pad_mode="edge").
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Padded and shrunk images. No view: what moved cannot be put back."""
        unit = (rng.uniform(torch.empty(len(images), 4, dtype=torch.float64, device=images.device)) + 1) / 2
        shares = (unit * self.share).unbind(1)
        sides = [*images.shape[2:]] * 2  # numbers of the host's: a tensor of them would be copied to the device
        top, left, bottom, right = ((each * side).round() for each, side in zip(shares, sides, strict=True))
        axes = [
            ((torch.arange(side, device=images.device) + 0.5) * ((side + a + b) / side)[:, None] - a[:, None]) / side
            for side, a, b in zip(images.shape[2:], (top, left), (bottom, right), strict=True)
        ]
        y, x = (2 * axis - 1 for axis in axes)  # -1 and 1 are the outer edges of the first and the last pixel
        grid = torch.stack([x[:, None].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
        return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False), None


class Brightness:
    """Pixels times U(low, high), one factor an image, clipped to [0, 1]: what imgaug's ContrastNormalization does to
    floats, whose middle it takes to be 0.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        unit = (rng.uniform(images[:, :1, :1, :1]) + 1) / 2
        return (images * (self.low + (self.high - self.low) * unit)).clamp(0, 1), None


class GaussianNoise:
    """x + `std`·N(0, 1) on a share of the images, drawn image by image; pixels may leave [0, 1] (GAL, Kariyappa &
    Qureshi 2019, as zjysteven/DVERGE has it).
    """

    def __init__(self, std: NotNegative, share: Share = 0.5) -> None:
        self.std, self.share = std, share

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Noisy images. No view: nothing is moved."""
        unit = (rng.uniform(images[:, :1, :1, :1]) + 1) / 2
        return images + (unit < self.share) * self.std * rng.normal(images), None


#: Batched augmentation of single images: the images, and the view that moved them, None where nothing is moved.
Augment = Callable[[Tensor, Draws], tuple[Tensor, View | None]]


class Chain:
    """Augmentations one after the other. At most one of them moves pixels, and its view is the chain's."""

    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = list(steps)

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, View | None]:
        """Images after all steps; each continues the draws of the one before."""
        view: View | None = None
        for step in self.steps:
            images, moved = step(images, rng)
            if moved is not None and view is not None:
                raise ConfigError("dataset.augment", "two crops", "an image has one view of itself", "leave one out")
            view = view if moved is None else moved
        return images, view


class OneOf:
    """One of several augmentations for each image, all equally likely. No view, whatever was drawn."""

    def __init__(self, choices: Sequence[Augment]) -> None:
        if not choices:
            raise ConfigError("dataset.augment", [], "there is nothing to choose from", "name some augmentations")
        self.choices = list(choices)

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Each image augmented by its choice. Every choice draws for every image, so that none depends on another."""
        count = len(self.choices)
        unit = (rng.uniform(torch.empty(len(images), dtype=torch.float64, device=images.device)) + 1) / 2
        drawn = (unit * count).long().clamp_(max=count - 1)
        augmented = torch.stack([choice(images, rng)[0] for choice in self.choices])
        return augmented[drawn, torch.arange(len(images), device=images.device)], None


def canvas_pad(augment: Augment | None) -> int:
    """The margin p of the padded canvas that the views of `augment` lie on; 0 where it moves nothing.

    Raises ConfigError where a view does not say what was moved: then no pixel can be put back.
    """
    steps = augment.steps if isinstance(augment, Chain) else [] if augment is None else [augment]
    for step in steps:
        if not isinstance(step, PadCropFlip | Cutout | Brightness | GaussianNoise):
            why = "no view says where its pixels came from, so that none can be put back"
            raise ConfigError("dataset.augment", type(step).__name__, why, "leave it out, or train.augment=false")
    return max((step.pad for step in steps if isinstance(step, PadCropFlip)), default=0)
