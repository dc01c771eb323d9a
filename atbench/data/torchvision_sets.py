"""The published sets: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, from disk or from torchvision's addresses.

Under `data_dir` either `<name>/{train,test}.npz` or the files as torchvision stores them, the first that is there. Only
without both is the set downloaded. Checksums are torchvision's.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from atbench.data.dataset import Images, Source
from atbench.data.download import fetch
from atbench.data.npz import Array, check_same_form, read_npz, to_images
from atbench.errors import ConfigError, DataError, hint


@dataclass(frozen=True)
class DatasetFiles:
    """Where torchvision keeps a set under `data_dir`: `files` by split, read by `read(folder, split)`."""

    folder: str
    files: Mapping[str, Sequence[str]]
    read: Callable[[Path, str], Images]


def published(
    data_dir: Path,
    name: str,
    classes: list[str],
    mean: list[float],
    std: list[float],
    validation: int,
    download: bool = True,
    pad: int = 0,
) -> Source:
    """The set `name` (mnist, fashion_mnist, cifar10, cifar100, svhn) with its official test split.

    Args:
        validation: how many of the train images are held out; the split is fixed and stratified.
        download: whether the network may be asked for what is not on the disk.
        pad: black pixels added on every side, which are part of the image to everything after: 2 makes MNIST 32×32.

    Raises DataError, with the way to get the set, where it is not there, is damaged or cannot be fetched.
    """
    if name not in DATASET_FILES:
        raise ConfigError("dataset.source.name", name, "is none of the published sets", hint(name, DATASET_FILES))
    if pad < 0:
        raise ConfigError("dataset.source.pad", pad, "would cut pixels off", "use 0 for none")
    load = _reader(data_dir, name, download)

    def read(split: str) -> Images:
        images = load(split)
        return Images(F.pad(images.x[:], [pad] * 4), images.y) if pad else images

    train = read("train")
    return Source(
        name=name,
        train=train,
        test=lambda: check_same_form(read("test"), train, len(classes), data_dir),
        classes=tuple(classes),
        mean=tuple(mean),
        std=tuple(std),
        validation=validation,
    )


def _reader(data_dir: Path, name: str, download: bool) -> Callable[[str], Images]:
    """What reads a split of the set. Both are known to be there: no training ends at a missing test file."""
    prepared, dataset_files = data_dir / name, DATASET_FILES[name]
    if (prepared / "train.npz").exists():
        if not (prepared / "test.npz").exists():
            raise DataError(name, prepared / "test.npz", "is not there, but train.npz is", "put both or neither there")
        return lambda split: read_npz(prepared / f"{split}.npz")
    paths = (data_dir / dataset_files.folder / name for part in dataset_files.files.values() for name in part)
    if missing := next((path for path in paths if not (path.is_file() or _packed(path).is_file())), None):
        if not download:
            why = f"is not there, nor is {prepared}/train.npz"
            fix = f"put either there, or `atbench train dataset={name} data_dir={data_dir}` where there is a network"
            raise DataError(name, missing, why, fix)
        fetch(name, data_dir)
    return partial(dataset_files.read, data_dir / dataset_files.folder)


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


# MNIST and Fashion-MNIST: IDX files (http://yann.lecun.com/exdb/mnist, "file formats").


def _idx_names(split: str) -> tuple[str, str]:
    part = "train" if split == "train" else "t10k"
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _read_idx(folder: Path, split: str) -> Images:
    image, label = (read_idx(folder / name) for name in _idx_names(split))
    return to_images(image[..., None], label, str(folder / _idx_names(split)[0]))


def read_idx(path: Path) -> Array:
    """The uint8 array in an IDX file, packed by gzip or not. Raises DataError where its size is not what it says."""
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(_packed(path).read_bytes())
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError("file", path, f"cannot be unpacked ({fault})", "delete it and get it again") from fault
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError("file", path, "is no IDX file of bytes", "delete it and get it again")
    axes = content[3]
    begin = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:begin]) if len(content) >= begin else ()
    expected = begin + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected or not shape:
        raise DataError("file", path, f"has {len(content)} bytes of {expected}", "delete it and get it again")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


# CIFAR: dictionaries of arrays, pickled by Python 2.


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain values, and calls nothing else: a damaged or foreign file cannot run code."""

    KNOWN = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return np.empty((0,)).__reduce__()[0] if name == "_reconstruct" else getattr(np, name)


def _read_cifar(labels: str, folder: Path, split: str) -> Images:
    from torchvision import datasets  # a second to import: only where it is used

    published = datasets.CIFAR10 if labels == "labels" else datasets.CIFAR100
    parts = []
    for name, md5 in published.train_list if split == "train" else published.test_list:
        path = folder / name
        content = _read_verified(path, md5)
        try:
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, KeyError) as fault:
            raise DataError("file", path, f"cannot be read ({fault})", "delete it and get it again") from fault
        parts.append((batch["data"], batch[labels]))
    image = np.concatenate([part for part, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return to_images(image, np.concatenate([part for _, part in parts]).astype(np.int64), str(folder))


def _read_verified(path: Path, md5: str) -> bytes:
    """The bytes of a file that has the published checksum. Raises DataError otherwise."""
    content = path.read_bytes()
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataError("file", path, f"has MD5 {actual}, not the published {md5}", "delete it and get it again")
    return content


# SVHN: MATLAB files, images along the last axis, the digit 0 labelled 10.


def _read_svhn(folder: Path, split: str) -> Images:
    from scipy.io import loadmat
    from torchvision import datasets

    _, name, md5 = datasets.SVHN.split_list[split]
    arrays = loadmat(io.BytesIO(_read_verified(folder / name, md5)))
    label = arrays["y"].astype(np.int64).ravel()
    return to_images(arrays["X"].transpose(3, 0, 1, 2), label % 10, str(folder / name))


_IDX = {split: _idx_names(split) for split in ("train", "test")}
DATASET_FILES = {
    "mnist": DatasetFiles("MNIST/raw", _IDX, _read_idx),
    "fashion_mnist": DatasetFiles("FashionMNIST/raw", _IDX, _read_idx),
    "cifar10": DatasetFiles(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        partial(_read_cifar, "labels"),
    ),
    "cifar100": DatasetFiles(
        "cifar-100-python", {"train": ("train",), "test": ("test",)}, partial(_read_cifar, "fine_labels")
    ),
    "svhn": DatasetFiles("", {split: (f"{split}_32x32.mat",) for split in ("train", "test")}, _read_svhn),
}
