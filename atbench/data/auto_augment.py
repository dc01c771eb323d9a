"""AutoAugment of whole batches, by torchvision's operations. Not imported by `atbench.data`: torchvision takes long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from math import atan, degrees

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from atbench.config.ranges import Share
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws

#: An operation, the probability that it runs, and its level from 0 to 9 (of none without one).
Operation = tuple[str, float, int]

#: The 25 sub-policies for CIFAR-10, of two operations each.
CIFAR10_POLICY: tuple[tuple[Operation, Operation], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


class AutoAugment:
    """One of the 25 sub-policies found on CIFAR-10 for each image (Cubuk et al. 2019, CVPR, arXiv 1805.09501).

    A sub-policy is two operations, each run with its probability, at its level; levels with a sign have either alike.
    Pixels are rounded to whole 255ths first: the operations are those of 8-bit images. What is moved leaves `fill`,
    128/255 in the code that most papers share (DeepVoltaire/AutoAugment). Otherwise the operations are torchvision's;
    in that code shears are bicubic and not bilinear, and rotations have no sign.
    """

    def __init__(self, fill: Share = 128 / 255) -> None:
        self.fill = round(255 * fill)

    def __call__(self, images: Tensor, rng: Draws) -> tuple[Tensor, None]:
        """Augmented images. No view: what moved cannot be put back."""
        if images.shape[1] not in (1, 3):
            why = f"its operations are for grey and colour images, and these have {images.shape[1]} channels"
            raise ConfigError("dataset.augment", "AutoAugment", why, "leave it out")
        # Five numbers an image, whatever is drawn: its sub-policy, and for each operation whether it runs and its sign.
        like = torch.empty(len(images), 5, dtype=torch.float64, device=images.device)
        unit = ((rng.uniform(like) + 1) / 2).cpu()
        count = len(CIFAR10_POLICY)
        chosen = (unit[:, 0] * count).long().clamp_(max=count - 1).tolist()
        pixels = (images * 255).round().to(torch.uint8)
        for place, (runs, sign) in enumerate(zip(unit[:, 1:3].T.tolist(), unit[:, 3:5].T.tolist(), strict=True)):
            # Images with the same operation, level and sign are one call.
            rows: dict[tuple[str, int], list[int]] = defaultdict(list)
            for row, policy in enumerate(chosen):
                name, probability, level = CIFAR10_POLICY[policy][place]
                if runs[row] < probability:
                    rows[name, level if sign[row] < 0.5 else -level].append(row)
            for (name, level), some in rows.items():
                index = torch.tensor(some, device=images.device)
                pixels[index] = operate(pixels[index], name, level, self.fill)
        return pixels.to(images.dtype) / 255, None


def operate(pixels: Tensor, name: str, level: int, fill: int) -> Tensor:
    """One operation on uint8 images (B, C, H, W) at a level from −9 to 9, whose sign some operations ignore."""
    share = level / 9
    move = partial(tv.affine, angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], fill=fill)
    shear = partial(move, interpolation=InterpolationMode.BILINEAR, center=[0, 0])
    angle = degrees(atan(0.3 * share))
    across, down = (int(150 / 331 * share * side) for side in (pixels.shape[3], pixels.shape[2]))
    operations: dict[str, Callable[[Tensor], Tensor]] = {
        "shear_y": lambda x: shear(x, shear=[0.0, angle]),
        "translate_x": lambda x: move(x, translate=[across, 0]),
        "translate_y": lambda x: move(x, translate=[0, down]),
        "rotate": lambda x: tv.rotate(x, 30 * share, fill=[fill]),
        "brightness": lambda x: tv.adjust_brightness(x, 1 + 0.9 * share),
        "color": lambda x: tv.adjust_saturation(x, 1 + 0.9 * share),
        "contrast": lambda x: tv.adjust_contrast(x, 1 + 0.9 * share),
        "sharpness": lambda x: tv.adjust_sharpness(x, 1 + 0.9 * share),
        "posterize": lambda x: tv.posterize(x, 8 - round(4 * abs(share))),
        "solarize": lambda x: tv.solarize(x, 255 * (1 - abs(share))),
        "autocontrast": tv.autocontrast,
        "equalize": tv.equalize,
        "invert": tv.invert,
    }
    return operations[name](pixels)
