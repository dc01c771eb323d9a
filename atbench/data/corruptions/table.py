"""Fifteen corruptions in five severities, after Hendrycks & Dietterich 2019 (ICLR, arXiv 1903.12261).

They are our own generation, from the definitions, for images of any size: figures are comparable between runs of
atbench, not with accuracies or mCE on the published CIFAR-10-C. Random numbers, libraries, borders, rounding and the
frost differ. The numbers of each severity are those that CIFAR-10-C was made with (hendrycks/robustness,
ImageNet-C/create_c/make_cifar_c.py), which is for 32×32 colour pictures. `glass_blur`, `procedural_frost` and
`elastic_transform` change several numbers at once: a higher severity need not move an image further. Severities 3 and 4
of `motion_blur` differ in the tail of a Gaussian only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atbench.data.corruptions import blur, digital, noise, weather
from atbench.data.dataset import Images
from atbench.errors import ConfigError, DataError
from atbench.runs.seeding import ExampleDraws


@dataclass(frozen=True)
class Corruption:
    """`apply(x, rng, *levels[severity - 1])`: float64 (B, C, H, W) in [0, 1] to the same shape, not yet clipped."""

    apply: Callable[..., Tensor]
    levels: tuple[tuple[float, ...], ...]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": Corruption(noise.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": Corruption(noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": Corruption(blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": Corruption(blur.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": Corruption(blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    # Up to 1.06, 1.11, 1.15, 1.2 and 1.25: np.arange(1, 1.06, 0.01) and (1, 1.11, 0.01) contain their ends.
    "zoom_blur": Corruption(blur.zoom_blur, ((6,), (11,), (15,), (20,), (25,))),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "procedural_frost": Corruption(
        weather.procedural_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    ),
    "fog": Corruption(weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(weather.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": Corruption(digital.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(digital.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": Corruption(digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
}
LEAST_SIDE = 8
#: Rows that are computed at once, whatever the batch: in double precision, 64 pictures of 224×224 are 77 MB.
ROWS = 64


def corrupt(images: Tensor, name: str, severity: int, rng: ExampleDraws) -> Tensor:
    """uint8 (B, C, H, W) → the same, corrupted; severity 0 is the image itself.

    `rng` holds each example's numbers. With the same numbers, what severity changes is the strength alone. Values are
    rounded to the nearest grey level; the published script cut them off.

    Raises ConfigError for a name or severity that there is not, DataError for images that are not uint8 with 1 or 3
    channels and at least 8×8 pixels.
    """
    check_corruption(name, severity)
    _check_images(images)
    if severity == 0 or len(images) == 0:
        return images.clone()
    corruption = CORRUPTIONS[name]
    out = torch.empty_like(images)
    for rows in torch.arange(len(images)).split(ROWS):
        x = images[rows.to(images.device)].double().contiguous() / 255
        x = corruption.apply(x, rng.take(rows), *corruption.levels[severity - 1])
        # Halves are common (contrast, means). Lifted off the tie, they do not depend on how a sum was ordered.
        out[rows.to(images.device)] = (255 * x.clamp(0, 1) + 0.5 + 1e-6).floor().clamp(max=255).to(torch.uint8)
    return out


def check_corruption(name: str, severity: int) -> None:
    """Raise ConfigError unless there is a corruption of this name, and this severity of it."""
    if name not in CORRUPTIONS:
        fix = f"use some of {', '.join(CORRUPTIONS)}"
        raise ConfigError("eval.corruptions", name, "there is no such corruption", fix)
    most = len(CORRUPTIONS[name].levels)
    if severity not in range(most + 1):
        why = "there is no such severity"
        raise ConfigError("eval.corruptions", severity, why, f"use 1 to {most}; 0 is the clean image")


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        what = f"{images.dtype} {tuple(images.shape)}"
        raise DataError("corruptions", what, "images must be uint8 of shape (B, C, H, W)", "convert them")
    if images.shape[1] not in (1, 3) or min(images.shape[2:]) < LEAST_SIDE:
        why = f"corruptions are defined for 1 or 3 channels and at least {LEAST_SIDE}x{LEAST_SIDE} pixels"
        raise DataError("corruptions", f"{tuple(images.shape[1:])} (C, H, W)", why, "leave corruptions out")


@dataclass(frozen=True)
class CorruptedImages(Images):
    """A split seen through one corruption, made as rows are asked for: `x` stays the clean images.

    position: (N,) int64 on the CPU, where each row stands in the split that the numbers are drawn for.
    """

    name: str
    severity: int
    seed: int
    position: Tensor

    def __post_init__(self) -> None:
        check_corruption(self.name, self.severity)

    def floats(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        where = index if isinstance(index, slice) else index.cpu()
        rng = ExampleDraws(self.seed, "corruption", self.name, index=self.position[where])
        return corrupt(self.x[index], self.name, self.severity, rng).to(dtype).div_(255)

    def take(self, index: Tensor) -> CorruptedImages:
        clean = super().take(index)
        return replace(self, x=clean.x, y=clean.y, position=self.position[index.cpu()])

    def to(self, device: torch.device) -> CorruptedImages:
        clean = super().to(device)
        return replace(self, x=clean.x, y=clean.y)
