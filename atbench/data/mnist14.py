"""MNIST at 14×14: the mean of each 2×2 block of pixels, made from the published images when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data.dataset import Images, Source
from atbench.data.torchvision_sets import published

TRAIN, ORDER_SEED = 10_000, 0
CLASSES, MEAN, STD = [str(k) for k in range(10)], [0.1307], [0.3081]  # as conf/dataset/mnist.yaml


def mnist14(data_dir: Path, validation: int, download: bool = True) -> Source:
    """10,000 of MNIST's train images and the whole test split, each in a fixed random order, rounded to uint8 again.

    The images lie where those of `dataset=mnist` do, and are fetched as they are.

    Args:
        validation: how many of the train images are held out; the split is fixed and stratified.
        download: whether the network may be asked for what is not on the disk.
    """
    full = published(data_dir, "mnist", CLASSES, MEAN, STD, validation, download)

    def test() -> Images:
        images = full.test()
        return _reduced(images, _orders(len(full.train), len(images))[1])

    return Source(
        name="mnist14",
        train=_reduced(full.train, _orders(len(full.train))[0]),
        test=test,
        classes=full.classes,
        mean=full.mean,
        std=full.std,
        validation=validation,
    )


def _orders(train: int, test: int = 0) -> tuple[Tensor, Tensor]:
    """Positions of the train images that are kept and of all test images, each in the order in which they stand."""
    rng = np.random.default_rng(ORDER_SEED)
    return torch.from_numpy(rng.permutation(train)[:TRAIN]), torch.from_numpy(rng.permutation(test))


def _reduced(images: Images, rows: Tensor) -> Images:
    """These rows, each 2×2 block of pixels averaged. Sums of four bytes are exact in float32, and halves go to even."""
    taken = images.take(rows)
    return Images(F.avg_pool2d(taken.x[:].float(), 2).round().to(torch.uint8), taken.y)
