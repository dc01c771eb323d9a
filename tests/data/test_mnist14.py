"""MNIST at 14×14 against means that are taken pixel by pixel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from atbench.data import Images
from atbench.data.npz import Array
from tests.support.published_files import opened, write_mnist

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"


def slow(image: Array) -> Array:
    """(N, 28, 28, 1) → (N, 14, 14), one mean at a time; a half goes to the even neighbour."""
    out = np.zeros((len(image), 14, 14), np.uint8)
    for n, i, j in np.ndindex(out.shape):
        total = sum(int(image[n, 2 * i + a, 2 * j + b, 0]) for a in (0, 1) for b in (0, 1))
        out[n, i, j] = round(total / 4)
    return out


def check(images: Images, image: Array, label: Array, order: Array) -> None:
    assert images.x.dtype == torch.uint8 and images.x.shape == (len(order), 1, 14, 14)
    assert np.array_equal(images.x[:, 0].numpy(), slow(image[order]))
    assert np.array_equal(images.y.numpy(), label[order])


def test_pixels_are_means_in_a_fixed_order(tmp_path: Path) -> None:
    splits = write_mnist(tmp_path / "MNIST" / "raw")
    source = opened("mnist14", tmp_path)
    rng = np.random.default_rng(0)
    check(source.train, *splits["train"], rng.permutation(40))
    test_order = rng.permutation(20)
    check(source.test(), *splits["t10k"], test_order)
    check(source.test(), *splits["t10k"], test_order)  # asked for a second time
    assert source.name == "mnist14" and source.shape == (1, 14, 14) and len(source.classes) == 10
    assert source.mean == (0.1307,) and source.std == (0.3081,) and source.validation == 2


def test_ten_thousand_of_the_train_images_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    n = 10_020
    number = np.arange(n)
    image = np.stack([number // 256, number % 256], axis=1).astype(np.uint8)[:, None].repeat(2, 1).repeat(2, 2)
    for split, part in (("train", n), ("test", 30)):
        np.savez(tmp_path / "mnist" / f"{split}.npz", image=image[:part, ..., None], label=number[:part] % 10)
    source = opened("mnist14", tmp_path)
    x = source.train.x[:, 0, 0].long()
    kept = 256 * x[:, 0] + x[:, 1]
    assert kept.tolist() == np.random.default_rng(0).permutation(n)[:10_000].tolist()
    assert torch.equal(kept % 10, source.train.y) and len(source.test()) == 30


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the real images are not beside this checkout (../shared/data)")
def test_real_images(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(REAL), "--out", str(tmp_path), "mnist"], check=True, capture_output=True)
    source = opened("mnist14", tmp_path)
    rng = np.random.default_rng(0)
    for images, split, n, kept in ((source.train, "train", 60_000, 10_000), (source.test(), "test", 10_000, 10_000)):
        with np.load(tmp_path / "mnist" / f"{split}.npz") as archive:
            order = rng.permutation(n)[:kept]
            image, label = archive["image"][order], archive["label"][order]
        assert np.array_equal(images.x[:, 0].numpy(), np.rint(image.reshape(kept, 14, 2, 14, 2).mean((2, 4))))
        assert np.array_equal(images.y.numpy(), label)
        check(Images(images.x[:20], images.y[:20]), image, label, np.arange(20))
