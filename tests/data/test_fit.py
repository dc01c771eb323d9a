"""A data set of which a training could not be finished is refused before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atbench.data import Images
from atbench.data.digits import digits
from atbench.data.npz import npz
from atbench.errors import AtbenchError


def arrays(path: Path, image: tuple[int, ...], classes: int = 2) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, image=np.zeros(image, np.uint8), label=np.arange(image[0]) % classes)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"validation": 0}, r"validation: 0 — the best checkpoint"),
        ({"validation": 0.001}, r"validation: 0 — the best checkpoint"),
        ({"validation": -0.1}, r"validation: -0\.1 — is neither"),
        ({"validation": 2.5}, r"validation: 2\.5 — is neither"),
        ({"validation": float("nan")}, r"validation: nan — is neither"),
        ({"validation": 400}, r"validation: 400 — leaves nothing"),
        ({"validation": 31}, r"leaves no example of class '0'"),
        ({"test": 0}, r"test: 0 — leaves nothing to test on"),
        ({"test": 0.001}, r"test: 0\.001 — leaves nothing to test on"),
        ({"test": -3}, r"test: -3 — is neither"),
        ({"test": 40}, r"test: 40 — leaves nothing"),
    ],
)
def test_parts_that_leave_nothing(parts: dict[str, float], said: str, tmp_path: Path) -> None:
    arrays(tmp_path / "mine" / "train.npz", (40, 8, 8, 1))
    with pytest.raises(AtbenchError, match=said):
        npz(tmp_path, "mine", **parts).check_trainable()


def test_a_test_part_is_not_asked_for_where_there_is_a_test_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        arrays(tmp_path / "mine" / f"{name}.npz", (40, 8, 8, 1))
    npz(tmp_path, "mine", test=0).check_trainable()


@pytest.mark.parametrize(("image", "classes", "said"), [((9, 6, 6, 1), 2, "6, 6"), ((9, 8, 8, 1), 3, "label 2")])
def test_a_test_file_of_other_images(image: tuple[int, ...], classes: int, said: str, tmp_path: Path) -> None:
    arrays(tmp_path / "mine" / "train.npz", (40, 8, 8, 1))
    arrays(tmp_path / "mine" / "test.npz", image, classes)
    with pytest.raises(AtbenchError, match=said):
        npz(tmp_path, "mine").check_trainable()


def test_a_torn_test_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        arrays(tmp_path / "mine" / f"{name}.npz", (40, 8, 8, 1))
    whole = (tmp_path / "mine" / "test.npz").read_bytes()
    (tmp_path / "mine" / "test.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AtbenchError, match=r"test\.npz"):
        npz(tmp_path, "mine").check_trainable()


def test_the_users_own_source_is_looked_at_as_well() -> None:
    source = digits()
    wrong = Images(torch.zeros(3, 1, 9, 9, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(AtbenchError, match=r"test images \(1, 9, 9\)"):
        replace(source, test=lambda: wrong).check_trainable()
    with pytest.raises(AtbenchError, match="no test example"):
        replace(source, test=lambda: wrong.take(torch.arange(0))).check_trainable()
