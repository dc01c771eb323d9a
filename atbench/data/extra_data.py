"""Extra training images from an npz archive, with or without labels, or from a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from atbench.data.dataset import Images
from atbench.data.image_folder import pictures_below
from atbench.data.lazy_images import GIB, DecoderPool, LazyImages
from atbench.data.npz import find_folder, read_extra_npz
from atbench.errors import DataError

MEMORY = 4.0  # GiB up to which pictures are decoded once and kept


def load_extra_data(data_dir: Path, path: str, shape: tuple[int, int, int], classes: int | None = None) -> Images:
    """The images at `path` (as given or under `data_dir`), shape (C, H, W), with their labels if `classes` says of
    how many classes, else with label −1.

    An npz file with `image` uint8 (N, H, W, C) and `label` (N,), the form in which generated data are published; or,
    without labels, a folder of pictures, however they lie in it, cut to squares of the data set's size. Raises
    DataError.
    """
    file = next((file for file in (Path(path), data_dir / path) if file.is_file()), None)
    if file is not None:
        images = read_extra_npz(file, classes)
        if tuple(images.x.shape[1:]) != shape:
            why = f"its images are {tuple(images.x.shape[1:])}, the data set's {shape}"
            raise DataError("train.extra_data.path", path, why, "make them alike")
        return images
    folder = find_folder(data_dir, path, "train.extra_data.path")
    if classes is not None:
        why = "a folder has no labels of the data set's classes"
        raise DataError("train.extra_data.path", path, why, "save them as an npz with image and label")
    channels, height, width = shape
    if channels != 3 or height != width:
        why = f"the data set's images are {shape}, a folder's are colour squares"
        raise DataError("train.extra_data.path", path, why, "save them as an npz with image uint8 (N, H, W, C)")
    files = sorted(pictures_below(str(folder)))
    if not files:
        raise DataError("train.extra_data.path", folder, "holds no picture", "correct the path")
    return Images(LazyImages(files, height, height, MEMORY * GIB, DecoderPool(None)), torch.full((len(files),), -1))
