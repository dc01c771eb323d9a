"""Data sets from NumPy arrays and npz archives: uint8 NHWC images with class indices; others are refused with a fix."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atbench.data.dataset import Images, Source, stratified
from atbench.errors import ConfigError, DataError

Array = NDArray[Any]
SPLIT_SEED = 0


def npz(
    data_dir: Path,
    path: str,
    classes: list[str] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
) -> Source:
    """A folder with `train.npz` and, if there is one, `test.npz`: `image` uint8 (N, H, W, C), `label` int64 (N,).

    Args:
        path: the folder, as it stands or under `data_dir`.
        classes: names; None calls them by their numbers, 0 to the largest label.
        mean, std: of [0, 1] pixels, for each channel; None is 0.5 and 0.25, near what natural pictures have.
        validation: how much of the train part is held out: a share below 1, or a number of images.
        test: the same of `train.npz` for the test split, where there is no `test.npz`. Both splits are fixed.
    """
    folder = find_folder(data_dir, path)
    train = read_npz(folder / "train.npz")
    names = tuple(classes or (str(k) for k in range(int(train.y.max()) + 1)))
    apart = folder / "test.npz"
    if apart.exists():
        rest, held = train, None
    else:
        held_rows, rows = stratified(train.y, (test_size(test, len(train)),), SPLIT_SEED)
        rest, held = train.take(rows), train.take(held_rows)
    channels = train.x.shape[1]
    return Source(
        name=folder.name,
        train=rest,
        test=lambda: held if held is not None else check_same_form(read_npz(apart), rest, len(names), apart),
        classes=names,
        mean=tuple(mean or [0.5] * channels),
        std=tuple(std or [0.25] * channels),
        validation=split_size(validation, len(rest), "validation"),
    )


def split_size(part: float, whole: int, key: str) -> int:
    """How many of `whole` examples `part` means: a share below 1, a number from there on. Raises ConfigError, naming
    `key`, for what is neither or leaves nothing over.
    """
    if not 0 <= part < math.inf or (part >= 1 and part != int(part)):
        why = "is neither a share from 0 to below 1 nor a number of examples"
        raise ConfigError(f"dataset.source.{key}", part, why, "correct the number")
    number = round(part * whole) if part < 1 else int(part)
    if number >= whole:
        why = f"leaves nothing of {whole} examples to train on"
        raise ConfigError(f"dataset.source.{key}", part, why, "use a smaller part")
    return number


def test_size(part: float, whole: int) -> int:
    """How many examples of a data set without test data of its own are tested on: one at least."""
    number = split_size(part, whole, "test")
    if number == 0:
        why = f"leaves nothing to test on, of {whole} examples without a test split"
        raise ConfigError("dataset.source.test", part, why, "use a larger part, or put test data beside the train data")
    return number


def find_folder(data_dir: Path, path: str, key: str = "dataset.source.path", origin: str = "") -> Path:
    """The folder `path`, as it stands or under `data_dir`. Raises DataError, with `origin`, elsewhere."""
    for place in (Path(path), data_dir / path):
        if place.is_dir():
            return place
    why = f"there is no such folder, here or in {data_dir}"
    fix = f"it comes from {origin}" if origin else "correct the path, or name the folder above it with data_dir="
    raise DataError(key, path, why, fix)


def check_same_form(images: Images, train: Images, classes: int, path: Path) -> Images:
    """`images` where they can be told apart by a network for `train`: its shape, its classes. Raises DataError."""
    ours, theirs = tuple(images.x.shape[1:]), tuple(train.x.shape[1:])
    if ours != theirs:
        raise DataError(str(path), f"{ours}", f"the train images are {theirs} (C, H, W)", "make them one size")
    if int(images.y.max()) >= classes:
        why = f"there are classes 0 to {classes - 1} to train on"
        raise DataError(str(path), f"label {int(images.y.max())}", why, "correct the labels")
    return images


def read_npz(path: Path) -> Images:
    """The archive's `image` and `label` as a split. Nothing in it is executed: no pickles. Raises DataError."""
    image, label = _arrays(path, "image", "label")
    return to_images(image, label, str(path))


def read_extra_npz(path: Path, classes: int | None) -> Images:
    """The archive's `image` with its `label`, of so many classes; None: with −1, and a `label` is not read.

    Such archives are large: the pixels are a view of what was read, so that they are in memory once. Raises DataError.
    """
    image, *label = _arrays(path, "image", *([] if classes is None else ["label"]))
    _check_pixels(image, str(path))
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
    if classes is None:
        return Images(pixels, torch.full((len(image),), -1))
    y = _labels(label[0], len(image), str(path))
    if int(y.max()) >= classes:
        why = f"the data set has the classes 0 to {classes - 1}"
        raise DataError(str(path), f"label {int(y.max())}", why, "correct the labels")
    return Images(pixels, y)


def _arrays(path: Path, *names: str) -> list[Array]:
    if not path.is_file():
        raise DataError("file", path, "is not there", "make it with image uint8 (N, H, W, C) and label int64 (N,)")
    again = "make it again with numpy.savez(path, image=..., label=...)"
    if not zipfile.is_zipfile(path):
        raise DataError("file", path, "cannot be read as an npz of plain arrays (it is no zip archive)", again)
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = set(names) - set(archive.files)
            if missing:
                what = f"has no array '{min(missing)}', only {', '.join(archive.files) or 'nothing'}"
                raise DataError("file", path, what, "name the arrays image and label")
            return [archive[name] for name in names]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as fault:  # one for each kind of damage
        why = f"cannot be read as an npz of plain arrays ({str(fault).splitlines()[0]})"
        raise DataError("file", path, why, again) from fault


def to_images(image: Array, label: Array, where: str) -> Images:
    """uint8 (N, H, W, C) pixels and integer (N,) labels as a split. Raises DataError, which names `where`."""
    _check_pixels(image, where)
    y = _labels(label, len(image), where)
    return Images(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), y)


def _labels(label: Array, images: int, where: str) -> Tensor:
    """Class indices as int64, one for each image."""
    if label.ndim != 1 or label.dtype.kind not in "iu":
        what = f"{label.dtype} {label.shape}"
        raise DataError(where, what, "labels must be int64 class indices of shape (N,)", "convert them")
    if len(label) != images:
        raise DataError(where, f"{len(label)} labels", f"there are {images} images", "give every image one label")
    if int(label.min()) < 0:
        raise DataError(where, f"label {int(label.min())}", "class indices start at 0", "correct the labels")
    return torch.from_numpy(label.astype(np.int64))


def _check_pixels(image: Array, where: str) -> None:
    if image.size == 0:
        raise DataError(where, f"image {image.shape}", "holds no pixel", "check how it was made")
    if image.dtype != np.uint8:
        what = f"image {image.dtype}{_value_range(image)}"
        raise DataError(where, what, "pixels must be uint8, 0 to 255", _fix(image))
    if image.ndim != 4 or image.shape[3] not in (1, 3):
        wanted = "images must be of shape (N, H, W, C) with 1 or 3 channels"
        if image.ndim == 4 and image.shape[1] in (1, 3):
            fix = "these are (N, C, H, W): save image.transpose(0, 2, 3, 1)"
        else:
            fix = "these have no channels: save image[..., None]" if image.ndim == 3 else "convert them"
        raise DataError(where, f"image {image.shape}", wanted, fix)


def _value_range(image: Array) -> str:
    """Where the pixels lie, as words to be put after their type."""
    if image.dtype.kind not in "iuf":
        return ""
    broken = ~np.isfinite(image)
    if broken.any():
        return f", not a number in row {int(np.argwhere(broken)[0][0])}"
    return f" from {image.min():.4g} to {image.max():.4g}"


def _fix(image: Array) -> str:
    if image.dtype.kind not in "iuf" or not np.isfinite(image).all():
        return "convert them"
    low, high = image.min(), image.max()
    if low >= 0 and high <= 1 and image.dtype.kind == "f":
        return "save (255 * image).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return "save image.round().astype('uint8')"
    if low >= -1 and high <= 1:
        return "if they were scaled to [-1, 1], save (127.5 * (image + 1)).round().astype('uint8')"
    return "undo their normalisation (x * std + mean), then save (255 * x).round().astype('uint8')"
