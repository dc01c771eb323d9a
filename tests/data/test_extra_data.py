"""Pools of load_extra_data images: from an archive or a folder, never counted in an epoch, labels never read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atbench.data import TrainData
from atbench.data.extra_data import load_extra_data
from atbench.errors import ConfigError, DataError
from atbench.training import World
from atbench.workflows import factory
from tests.support.class_folders import SIDE, trees
from tests.support.contract import configuration
from tests.support.worlds import data, source

SHAPE = (1, 8, 8)


def archive(path: Path, n: int = 100, **arrays: np.ndarray) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=image, **arrays)
    return image


@pytest.mark.parametrize("arrays", [{}, {"label": np.full(100, 7)}], ids=["bare", "labelled"])
def test_an_archive_is_read_without_labels(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    image = archive(tmp_path / "more.npz", **arrays)
    for data_dir, path in ((tmp_path, "more.npz"), (tmp_path / "x", str(tmp_path / "more.npz"))):
        pool = load_extra_data(data_dir, path, SHAPE)
        assert torch.equal(pool.x[:, 0], torch.from_numpy(image[..., 0])) and (pool.y == -1).all()


def test_a_folder_is_read_however_it_lies(tmp_path: Path) -> None:
    trees(tmp_path / "more", 4)
    pool = load_extra_data(tmp_path, "more", (3, SIDE, SIDE))
    assert len(pool) == 12 and (pool.y == -1).all() and pool.floats(torch.tensor([3])).shape == (1, 3, SIDE, SIDE)


def test_what_does_not_fit_the_data_set_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "more.npz")
    trees(tmp_path / "more", 1)
    (tmp_path / "none").mkdir()
    for path, shape, says in (
        ("more.npz", (3, 8, 8), r"\(1, 8, 8\)"),
        ("more", SHAPE, "colour squares"),
        ("none", (3, 8, 8), "no picture"),
        ("absent", SHAPE, "no such folder"),
    ):
        with pytest.raises(DataError, match=f"train.extra_data.path.*{says}"):
            load_extra_data(tmp_path, path, shape)


def test_the_pool_fills_its_part_of_a_batch_and_makes_no_epoch_longer(tmp_path: Path) -> None:
    archive(tmp_path / "more.npz")
    pool = load_extra_data(tmp_path, "more.npz", SHAPE)
    given, plain = data(pool=pool, extra=0.5), data()
    assert given.steps == plain.steps == 4 and len(given.train) == 48
    batches = [given.batch(epoch, step) for epoch in range(5) for step in range(4)]
    drawn = torch.cat([batch.extra.index for batch in batches if batch.extra])
    assert torch.equal(drawn[:100].sort().values, torch.arange(100)) and len(batches[0]) == 6
    extra = batches[3].extra
    assert extra is not None and torch.equal(extra.x, pool.floats(extra.index, torch.float64))
    with pytest.raises(ConfigError, match=r"train\.extra_data\.labelled: 0\.5"):
        data(pool=pool, labelled=0.5, extra=0.5)


def test_it_is_asked_for_by_its_path(tmp_path: Path) -> None:
    archive(tmp_path / "more.npz")
    words = ["train.extra_data.labelled=null", "train.extra_data.path=more.npz", f"data_dir={tmp_path}"]
    cfg = configuration("rst", *words)
    here = World(torch.device("cpu"))
    given = factory.make_data(cfg, source(n=60), here)
    assert isinstance(given, TrainData) and given.pool is not None and len(given.pool) == 100
    method = factory.make_method(cfg, factory.make_model(cfg, source(n=60)), given, here)
    assert len(method.labels) == 100
