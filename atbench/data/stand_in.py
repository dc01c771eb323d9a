"""Random images in the form of a published data set, to measure with where the set itself is not at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atbench.data.dataset import Images, Source


@dataclass(frozen=True)
class Form:
    """shape: (C, H, W) of an image; train, test: how many images the splits have."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int


#: By the name of the data set's option.
FORMS = {
    "mnist": Form((1, 28, 28), 10, 60_000, 10_000),
    "mnist14": Form((1, 14, 14), 10, 10_000, 10_000),
    "fashion_mnist": Form((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": Form((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": Form((3, 32, 32), 100, 50_000, 10_000),
    "svhn": Form((3, 32, 32), 10, 73_257, 26_032),
    "tiny_imagenet": Form((3, 64, 64), 200, 100_000, 10_000),
    "imagenet": Form((3, 224, 224), 1000, 1_281_167, 50_000),
}


def stand_in(name: str, count: int, validation: int, pad: int = 0) -> Source:
    """`count` random images to train on in the form of the set `name`, and `validation` more that are held out.

    pad: pixels that every side has more, as `dataset.source.pad`.
    """
    form = FORMS[name]
    channels, height, width = form.shape
    n = max(count + validation, form.classes)
    shape = (n, channels, height + 2 * pad, width + 2 * pad)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(n) % form.classes)
    names = tuple(str(label) for label in range(form.classes))
    return Source(name, images, lambda: images, names, (0.5,) * channels, (0.25,) * channels, validation)
