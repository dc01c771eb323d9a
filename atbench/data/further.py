"""Further images without labels: a pool beside the data set, from an archive or from a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from atbench.data.arrays import found, read_unlabelled
from atbench.data.folders import pictures_below
from atbench.data.pictures import GIB, Crew, Pictures
from atbench.data.splits import Images
from atbench.errors import DataError

MEMORY = 4.0  # GiB up to which pictures are decoded once and kept


def further(data_dir: Path, path: str, shape: tuple[int, int, int]) -> Images:
    """The images at `path` (as it stands or under `data_dir`), shape (C, H, W), label −1.

    An npz file with `image` uint8 (N, H, W, C), the form in which generated data are published; or a folder of
    pictures, however they lie in it, cut to squares of the data set's size. Raises DataError.
    """
    file = next((place for place in (Path(path), data_dir / path) if place.is_file()), None)
    if file is not None:
        images = read_unlabelled(file)
        if tuple(images.x.shape[1:]) != shape:
            ours = tuple(images.x.shape[1:])
            raise DataError(
                "train.pool.path", path, f"its images are {ours}, the data set's {shape}", "make them alike"
            )
        return images
    folder = found(data_dir, path, "train.pool.path")
    channels, height, width = shape
    if channels != 3 or height != width:
        why = f"the data set's images are {shape}, a folder's are colour squares"
        raise DataError("train.pool.path", path, why, "save them as an npz with image uint8 (N, H, W, C)")
    files = sorted(pictures_below(str(folder)))
    if not files:
        raise DataError("train.pool.path", folder, "holds no picture", "correct the path")
    return Images(Pictures(files, height, height, MEMORY * GIB, Crew(None)), torch.full((len(files),), -1))
