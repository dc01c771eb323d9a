"""Archives of arrays: what is right is read as it is, what is wrong is named with the range found and a cure."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atbench.data.npz import Array, npz, read_npz, to_images
from atbench.errors import DataError

RNG = np.random.default_rng(0)


def pixels(n: int = 30, side: int = 4, channels: int = 3) -> Array:
    return RNG.integers(0, 256, (n, side, side + 1, channels), dtype=np.uint8)


def labels(n: int = 30, classes: int = 3) -> Array:
    return np.arange(n) % classes


def saved(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_pixels_keep_their_place_and_labels_their_image(tmp_path: Path) -> None:
    image, label = pixels(), labels()
    images = read_npz(saved(tmp_path / "a.npz", image=image, label=label))
    assert images.x.dtype == torch.uint8 and images.x.shape == (30, 3, 4, 5) and images.y.dtype == torch.int64
    assert images.x[7, 2, 1, 3] == int(image[7, 1, 3, 2]) and images.y.tolist() == label.tolist()


@pytest.mark.parametrize(
    ("image", "says", "cure"),
    [
        (pixels() / 255.0, "float64 from 0 to 1", r"\(255 \* image\)"),
        (pixels().astype(np.float32), "float32 from 0 to 255", r"image.round\(\)"),
        (pixels() / 127.5 - 1, "from -1 to 1", "127.5"),
        ((pixels() / 255.0 - 0.5) / 0.2, "from -2.5 to 2.5", "normalisation"),
        (pixels().astype(np.int64), "int64 from 0 to 255", "uint8"),
        (pixels().astype(np.int16) * 3, "int16 from 0 to 765", "convert|normalisation"),
        (np.where(np.arange(30)[:, None, None, None] == 4, np.nan, pixels()), "not a number in row 4", "convert"),
        (pixels().transpose(0, 3, 1, 2), r"\(30, 3, 4, 5\)", r"transpose\(0, 2, 3, 1\)"),
        (pixels()[..., 0], r"\(30, 4, 5\)", r"image\[\.\.\., None\]"),
        (pixels(channels=4), "1 or 3 channels", "convert"),
        (pixels()[:0], "no pixel", "check"),
    ],
    ids=["unit", "grey levels", "plus-minus", "normalised", "int64", "int16", "nan", "nchw", "nhw", "rgba", "empty"],
)
def test_pixels_of_another_kind_are_refused_with_what_they_are(image: Array, says: str, cure: str) -> None:
    with pytest.raises(DataError, match=f"(?s)where.*{says}.*; .*({cure})"):
        to_images(image, labels(), "where")


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (labels(29), "29 labels.*30 images"),
        (labels().astype(np.float32), "float32"),
        (np.eye(3)[labels()].astype(np.int64), r"int64 \(30, 3\)"),
        (labels() - 1, "label -1"),
    ],
)
def test_labels_of_another_kind_are_refused(label: Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        to_images(pixels(), label, "where")


class Bomb:
    """What a hostile file would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a file was executed')",))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    bomb = np.array([Bomb()], dtype=object)
    with pytest.raises(DataError, match=r"objects\.npz.*plain arrays"):
        read_npz(saved(tmp_path / "objects.npz", image=bomb, label=labels()))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pickle\.npz.*plain arrays"):
        read_npz(tmp_path / "pickle.npz")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1], ids=str)
def test_a_torn_archive_is_named(tmp_path: Path, kept: float) -> None:
    whole = saved(tmp_path / "whole.npz", image=pixels(), label=labels()).read_bytes()
    torn = tmp_path / "torn.npz"
    torn.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"torn\.npz"):
        read_npz(torn)


def test_flipped_bits_do_not_pass(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", image=pixels(), label=labels())
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        read_npz(path)


def test_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no array 'label', only image, labels"):
        read_npz(saved(tmp_path / "a.npz", image=pixels(), labels=labels()))
    buffer = io.BytesIO()
    np.save(buffer, pixels())
    (tmp_path / "b.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"b\.npz"):
        read_npz(tmp_path / "b.npz")


class TestSource:
    def test_two_archives(self, tmp_path: Path) -> None:
        train, test = pixels(), pixels(6)
        saved(tmp_path / "mine" / "train.npz", image=train, label=labels())
        saved(tmp_path / "mine" / "test.npz", image=test, label=labels(6))
        for data_dir, path in ((tmp_path, "mine"), (tmp_path / "elsewhere", str(tmp_path / "mine"))):
            source = npz(data_dir, path)
            assert (len(source.train), source.validation, source.classes) == (30, 3, ("0", "1", "2"))
            assert source.name == "mine" and source.mean == (0.5,) * 3 and source.shape == (3, 4, 5)
            assert torch.equal(source.test().x, torch.from_numpy(test).permute(0, 3, 1, 2))

    def test_one_archive_is_split_in_proportion_and_always_alike(self, tmp_path: Path) -> None:
        saved(tmp_path / "mine" / "train.npz", image=pixels(), label=labels())
        first, again = (npz(tmp_path, "mine", test=0.4) for _ in range(2))
        test = first.test()
        assert (len(first.train), len(test), first.validation) == (18, 12, 2)
        assert torch.bincount(test.y).tolist() == [4, 4, 4] and torch.equal(test.x, again.test().x)
        kept, held = ({image.numpy().tobytes() for image in images.x} for images in (first.train, test))
        assert not kept & held and len(kept | held) == 30

    @pytest.mark.parametrize(
        ("image", "label", "says"),
        [(pixels(6, 5), labels(6), "train images are"), (pixels(6), labels(6) + 1, "label 3.*0 to 2")],
    )
    def test_test_images_of_another_kind_are_refused(
        self, tmp_path: Path, image: Array, label: Array, says: str
    ) -> None:
        saved(tmp_path / "mine" / "train.npz", image=pixels(), label=labels())
        saved(tmp_path / "mine" / "test.npz", image=image, label=label)
        with pytest.raises(DataError, match=says):
            npz(tmp_path, "mine").test()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"dataset\.source\.path: mine — .*data_dir="):
            npz(tmp_path, "mine")
