"""Folders of pictures, one for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 12
CLASSES = ("ash", "birch", "cedar")


def draw(path: Path, colour: int, number: int, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """A picture of one dominant colour, different from all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1000 * colour + number).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., colour] += 140
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def trees(root: Path, each: int = 20, suffix: str = ".jpg") -> Path:
    for colour, name in enumerate(CLASSES):
        for number in range(each):
            draw(root / name / f"{number:03}{suffix}", colour, number)
    return root
