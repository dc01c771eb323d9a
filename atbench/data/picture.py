"""One picture file as the image that a network takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atbench.data.lazy_images import refuse_animation, to_rgb
from atbench.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB"}  # Pillow's name for a picture of so many channels


def read_picture(file: Path, shape: tuple[int, int, int], resize: int | None = None) -> tuple[Tensor, tuple[int, int]]:
    """The picture as uint8 `shape` (C, H, W), and its own width and height.

    One of another size is scaled until it covers (H, W), or its shorter side is `resize`, and the middle is cut out.
    Raises DataError for a file that is no single opaque picture, ConfigError for channels that no picture has.
    """
    channels, height, width = shape
    if channels not in MODES:
        why = "the network takes images that no picture file holds"
        raise ConfigError("predict", f"{channels} channels", why, "use a network for grey or colour pictures")
    try:
        with Image.open(file) as opened:
            refuse_animation(opened, str(file))
            picture = to_rgb(opened, str(file)).convert(MODES[channels])
    except FileNotFoundError as fault:
        raise DataError("picture", file, "there is no such file", "correct the path") from fault
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as fault:
        raise DataError("picture", file, f"cannot be decoded ({fault})", "give a PNG or JPEG file") from fault
    size = picture.size
    scale = resize / min(size) if resize else max(width / size[0], height / size[1])
    if scale != 1:
        scaled = (max(width, round(size[0] * scale)), max(height, round(size[1] * scale)))
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    pixels = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1).contiguous(), size


def to_png(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1] on the 8-bit grid as a picture."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).cpu().numpy()
    return Image.fromarray(pixels)
