"""The published data sets' own files, small, with random pixels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from atbench.config.instantiate import build
from atbench.data.npz import Array
from tests.support.configs import resolved

RNG = np.random.default_rng(0)


def made(side: int = 28, channels: int = 1, n: int = 40) -> tuple[Array, Array]:
    return RNG.integers(0, 256, (n, side, side, channels), dtype=np.uint8), np.arange(n) % 10


def write_idx(path: Path, array: Array, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)


def write_mnist(folder: Path, packed: bool = False, n: int = 40) -> dict[str, tuple[Array, Array]]:
    splits = {"train": made(n=n), "t10k": made(n=20)}
    for part, (image, label) in splits.items():
        write_idx(folder / f"{part}-images-idx3-ubyte", image[..., 0], packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte", label, packed)
    return splits


def opened(name: str, data_dir: Path, **options: Any) -> Any:
    """The source as `dataset=name` would build it."""
    node = resolved(f"dataset={name}", "dataset.source.validation=2").dataset.source  # the sets here are small
    return build(node, "dataset.source", data_dir=data_dir, **options)
