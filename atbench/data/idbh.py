"""IDBH: flip, CropShift, one operation on colour or shape, and a rectangle that is erased (Li & Spratling 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.config.ranges import Share
from atbench.errors import ConfigError, refuse_unknown
from atbench.runs.seeding import Draws

TRIES = 10  # torchvision's RandomErasing gives up after as many rectangles that do not fit
RATIO = (0.3, 3.3)  # its height to width
Pair = Sequence[float]


class Idbh:
    """IDBH (Li & Spratling 2023, ICLR, arXiv 2301.09879), in place of the usual crop and flip.

    In this order: mirrored with probability ½; CropShift; one of `operations`; with probability `erase` a rectangle of
    the image becomes 0. CropShift cuts s lines off, s from `crop`, c_x columns and c_y = s − c_x rows of them: the rest
    is a window at random in the image, and comes to a random place of a canvas of zeros.

    Source: TreeLLi/DA-Alone-Improves-AT, src/data/idbh.py, which works on 8-bit images: between operations it rounds.
    Nothing can be put back, so that there is no view.

    Args:
        crop: the least s and the first that is too large.
        operations: name → its share and, but for autocontrast and equalize, the range of its strength: a factor
            (saturation, brightness, contrast, sharpness), radians (shear, of either axis and sign) or whole degrees
            below the second (rotate, of either sign). What the shares leave of 1 is left alone.
        erase, area: probability and size of the rectangle, in shares of the image.
    """

    def __init__(self, crop: Sequence[int], operations: Mapping[str, Pair], erase: Share, area: Pair) -> None:
        for name in operations:
            refuse_unknown("dataset.augment.operations", name, (*FACTORS, *PLAIN, "shear", "rotate"), "operation")
        if sum(share for share, *_ in operations.values()) > 1 + 1e-9:
            why = "the shares add up to more than 1"
            raise ConfigError("dataset.augment.operations", dict(operations), why, "let one of them happen to an image")
        self.crop, self.operations, self.erase, self.area = crop, operations, erase, area

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Augmented images. Every image draws the same numbers, whatever happens to it."""

        def unit(count: int) -> Tensor:
            drawn = rng.uniform(torch.empty(len(images), count, dtype=torch.float64, device=images.device))
            return (drawn + 1) / 2

        if self.crop[1] > min(images.shape[2:]):
            why = f"images of {images.shape[2]}×{images.shape[3]} have no more lines than that"
            raise ConfigError("dataset.augment.crop", [*self.crop], why, "use larger pictures, or cut off less")
        images = torch.where((unit(1) < 0.5)[..., None, None], images.flip(-1), images)
        images = self._operate(self._crop_shift(images, unit(6)), unit(4))
        return erase(images, *self._rectangle(images, unit(1 + 4 * TRIES))), None

    def _crop_shift(self, images: Tensor, unit: Tensor) -> Tensor:
        low, high = self.crop
        lines = low + whole(unit[:, 0], max(1, high - low))
        columns = whole(unit[:, 1], lines + 1)
        cut = torch.stack([lines - columns, columns], dim=1)
        return crop_shift(images, cut, whole(unit[:, 2:4], cut + 1), whole(unit[:, 4:6], cut + 1))

    def _operate(self, images: Tensor, unit: Tensor) -> Tensor:
        """The operation of each image. unit (B, 4): which one, its strength, sign and axis."""
        images, left = images.clone(), 0.0
        for name, (share, *between) in self.operations.items():
            rows = ((unit[:, 0] >= left) & (unit[:, 0] < left + share)).nonzero().squeeze(1)
            left += share
            strength = unit[rows, 1]
            if name == "rotate":
                strength = between[0] + whole(strength, int(between[1] - between[0]))
            elif between:
                strength = between[0] + (between[1] - between[0]) * strength
            strength = torch.where(unit[rows, 2] < 0.5, -strength, strength) if name in MATRICES else strength
            images[rows] = operate(images[rows], name, strength, unit[rows, 3] < 0.5)
        return images

    def _rectangle(self, images: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Top left corner and size (B, 2) of each image's rectangle: the first of some that fits, as torchvision tries
        them. No size where nothing is erased.
        """
        sides = torch.tensor(images.shape[2:], dtype=torch.float64, device=images.device)
        area, ratio, *corner = unit[:, 1:].view(len(unit), 4, TRIES).unbind(1)
        area = sides.prod() * (self.area[0] + (self.area[1] - self.area[0]) * area)
        ratio = (math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio).exp()
        size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2).round()
        fits = (size < sides).all(dim=2)
        first = fits.to(torch.uint8).argmax(dim=1)
        rows = torch.arange(len(unit), device=unit.device)
        size = size[rows, first] * (fits.any(dim=1) & (unit[:, 0] < self.erase))[:, None]
        return whole(torch.stack(corner, dim=2)[rows, first], sides - size + 1), size


def whole(unit: Tensor, count: Tensor | int) -> Tensor:
    """0 … count − 1, all equally likely for `unit` in [0, 1]."""
    most = torch.as_tensor(count, device=unit.device) - 1
    return (unit * (most + 1)).floor().minimum(most.to(unit.dtype))


def crop_shift(images: Tensor, cut: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Windows smaller than the images by `cut` (B, 2: rows, columns), from `source` in them to `target` on zeros."""
    inside, places = [], []
    for axis, side in enumerate(images.shape[2:]):
        line = torch.arange(side, device=images.device)[None, :] - target[:, axis, None]
        inside.append((line >= 0) & (line < side - cut[:, axis, None]))
        places.append((line + source[:, axis, None]).clamp(0, side - 1).long())
    rows, columns = places[0][:, None, :, None], places[1][:, None, None, :]
    examples, channels = (torch.arange(count, device=images.device) for count in images.shape[:2])
    moved = images[examples[:, None, None, None], channels[None, :, None, None], rows, columns]
    return moved * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


def erase(images: Tensor, corner: Tensor, size: Tensor) -> Tensor:
    """Zeros in the rectangle with top left corner and size (B, 2: rows, columns) of each image."""
    hole = []
    for axis, side in enumerate(images.shape[2:]):
        offset = torch.arange(side, device=images.device)[None, :] - corner[:, axis, None]
        hole.append((offset >= 0) & (offset < size[:, axis, None]))
    return images.masked_fill(hole[0][:, None, :, None] & hole[1][:, None, None, :], 0.0)


def operate(images: Tensor, name: str, strength: Tensor, first_axis: Tensor) -> Tensor:
    """One operation on images (b, C, H, W), with the strength of each and, for shear, the axis."""
    from torchvision.transforms.v2 import functional as V  # a second to import: only where it is used

    if not len(images):
        return images
    if name == "equalize":  # of 8-bit images, which all are that no operation has been through
        return V.equalize((images * 255).round().to(torch.uint8)).to(images.dtype) / 255
    if name == "autocontrast":
        return V.autocontrast(images)
    if name in MATRICES:
        return warp(images, MATRICES[name](strength, first_axis))
    plain = getattr(V, FACTORS[name])(images, 0.0)  # what a factor of 0 leaves: no colour, black, one grey, blurred
    return (plain + strength.to(images.dtype)[:, None, None, None] * (images - plain)).clamp(0, 1)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Each pixel, at (x, y) from the centre, becomes the nearest one to matrix (b, 2, 2) · (x, y); zeros outside."""
    height, width = images.shape[2:]
    # affine_grid counts both axes from -1 to 1
    scale = torch.tensor([[1.0, height / width], [width / height, 1.0]], dtype=matrices.dtype, device=matrices.device)
    theta = F.pad(matrices * scale, (0, 1)).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _rotation(degrees: Tensor, first_axis: Tensor) -> Tensor:
    """Counter-clockwise on the screen, where y points down."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


def _shear(radians: Tensor, first_axis: Tensor) -> Tensor:
    tan, one = radians.tan(), torch.ones_like(radians)
    x, y = torch.where(first_axis, tan, 0.0), torch.where(first_axis, 0.0, tan)
    return torch.stack([torch.stack([one, x], dim=1), torch.stack([y, one], dim=1)], dim=1)


FACTORS = {name: f"adjust_{name}" for name in ("saturation", "brightness", "contrast", "sharpness")}
PLAIN = ("autocontrast", "equalize")
MATRICES = {"shear": _shear, "rotate": _rotation}
