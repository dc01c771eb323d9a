"""Measurements that survive a kill, a change of batch size and a change of the number of processes."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atbench.evaluation import EvalModel, ResultCache

ROWS = torch.tensor([9, 2, 7, 4, 0, 5, 8])


class Stopped(Exception):
    pass


def eval_model(batch_size: int = 2, **sharing: object) -> EvalModel:
    return EvalModel(nn.Linear(1, 1), batch_size, **sharing)  # type: ignore[arg-type]


class Work:
    """Squares of the rows; remembers what it was asked for, and stops after so many batches."""

    def __init__(self, batches: int = 100) -> None:
        self.asked: list[int] = []
        self.left = batches

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        if self.left == 0:
            raise Stopped
        self.left -= 1
        self.asked += rows.tolist()
        return {"square": rows**2, "wide": rows[:, None].float().expand(-1, 3)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultCache:
    monkeypatch.setattr(ResultCache, "SECONDS", -1.0)  # every batch is written
    return ResultCache(tmp_path / "parts", {"weights": "abc"})


@pytest.mark.parametrize("folder", [None, "parts"])
def test_results_come_in_the_order_asked_for(folder: str | None, tmp_path: Path) -> None:
    found = ResultCache(tmp_path / folder if folder else None, {}).measure(eval_model(), "a", {}, ROWS, Work())
    assert found["square"].tolist() == (ROWS**2).tolist()
    assert found["wide"].shape == (7, 3) and (found["seconds"] >= 0).all()


def test_what_was_interrupted_goes_on_with_the_rest(cache: ResultCache) -> None:
    with pytest.raises(Stopped):
        cache.measure(eval_model(), "a", {"steps": 3}, ROWS, Work(batches=2))
    again = Work()
    found = cache.measure(eval_model(batch_size=3), "a", {"steps": 3}, ROWS, again)
    assert again.asked == ROWS[4:].tolist()
    assert found["square"].tolist() == (ROWS**2).tolist()
    more = Work()
    wider = cache.measure(eval_model(), "a", {"steps": 3}, torch.arange(10), more)
    assert sorted(more.asked) == [1, 3, 6] and wider["square"].tolist() == [i**2 for i in range(10)]


def test_other_weights_settings_or_names_share_nothing(cache: ResultCache) -> None:
    cache.measure(eval_model(), "a", {"steps": 3}, ROWS, Work())
    assert cache.folder is not None
    for other, name, settings in (
        (cache, "b", {"steps": 3}),
        (cache, "a", {"steps": 4}),
        (ResultCache(cache.folder, {"weights": "abd"}), "a", {"steps": 3}),
    ):
        work = Work()
        other.measure(eval_model(), name, settings, ROWS, work)
        assert len(work.asked) == len(ROWS)


def test_a_part_that_was_cut_off_is_measured_again(cache: ResultCache) -> None:
    cache.measure(eval_model(), "a", {}, ROWS, Work())
    assert cache.folder is not None
    part = sorted(cache.folder.rglob("*.npz"))[0]
    part.write_bytes(part.read_bytes()[:-40])
    work = Work()
    found = cache.measure(eval_model(), "a", {}, ROWS, work)
    assert len(work.asked) == 2 and found["square"].tolist() == (ROWS**2).tolist()


def test_nothing_to_measure(cache: ResultCache) -> None:
    assert cache.measure(eval_model(), "a", {}, ROWS[:0], Work(batches=0)) == {}


def test_processes_share_the_work_and_all_see_everything(cache: ResultCache) -> None:
    meet = threading.Barrier(3)

    def reduce(tensor: Tensor) -> Tensor:
        meet.wait(timeout=30)
        return tensor

    works = [Work() for _ in range(3)]
    found: dict[int, dict[str, np.ndarray]] = {}

    def process(rank: int) -> None:
        mine = eval_model(rank=rank, world=3, reduce=reduce)
        found[rank] = cache.measure(mine, "a", {}, ROWS, works[rank])

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(row for work in works for row in work.asked) == sorted(ROWS.tolist())
    assert all(found[rank]["square"].tolist() == (ROWS**2).tolist() for rank in range(3))


class SmallDevice(Work):
    """Work that runs out of memory on more than so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.refused = rows, 0

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        if len(rows) > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().__call__(rows)


def test_memory_that_runs_out_halves_the_batch_for_the_rest(cache: ResultCache) -> None:
    model, work, said = eval_model(batch_size=6), SmallDevice(rows=2), list[str]()
    model.say = said.append
    found = cache.measure(model, "a", {}, ROWS, work)
    assert found["square"].tolist() == (ROWS**2).tolist() and work.asked == ROWS.tolist()
    assert work.refused == 2 and model.batch_size == 1
    assert said[-1] == "out of memory: batches of 1 images from here on, with the same results"
    cache.measure(model, "b", {}, ROWS, work)
    assert work.refused == 2


def test_what_smaller_batches_cannot_help_is_raised(cache: ResultCache) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        cache.measure(eval_model(), "a", {}, ROWS, SmallDevice(rows=0))
    model = eval_model()
    model.random = True  # its outcome depends on the batch
    with pytest.raises(torch.OutOfMemoryError):
        cache.measure(model, "a", {}, ROWS, SmallDevice(rows=1))
    assert model.batch_size == 2
