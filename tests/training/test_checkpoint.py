"""Checkpoints: whole or not, and the one before."""

from __future__ import annotations

import io
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.errors import DataError, EnvironmentFault
from atbench.runs.run_dir import write_bytes
from atbench.training import checkpoint
from tests.support.contract import ALONE, Log, trainer_of
from tests.support.tiers import METHODS

CONTENT: dict[str, Any] = {"weights": torch.arange(1000.0), "epoch": 3, "nested": {"list": [1, 2.5, None, "text"]}}


def test_anybody_can_open_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", CONTENT)
    opened = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(opened["weights"], CONTENT["weights"]) and opened["nested"] == CONTENT["nested"]
    assert checkpoint.read(tmp_path / "a.pt")["epoch"] == 3


def test_every_truncation_and_every_flipped_bit_is_noticed() -> None:
    data = checkpoint.encode(CONTENT)
    assert checkpoint.whole(data)
    rng = random.Random(0)
    for length in [0, 1, 65, 66, len(data) - 1, *(rng.randrange(len(data)) for _ in range(200))]:
        assert not checkpoint.whole(data[:length])
    for _ in range(500):
        hurt = bytearray(data)
        hurt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        assert not checkpoint.whole(bytes(hurt))


def test_there_is_one_copy_of_it_in_memory() -> None:
    content = {"weights": torch.zeros(1 << 20, dtype=torch.float64)}
    tracemalloc.start()
    try:
        data = checkpoint.encode(content)
        assert checkpoint.whole(data) and tracemalloc.get_traced_memory()[1] < 1.5 * len(data)
    finally:
        tracemalloc.stop()


def test_the_one_before_is_used_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for epoch in (1, 2):
        checkpoint.save(path, {"epoch": epoch}, keep_previous=True)
    assert checkpoint.latest(path) == ({"schema": 1, "epoch": 2}, None)
    path.write_bytes(path.read_bytes()[:-100])
    state, warning = checkpoint.latest(path)
    assert state["epoch"] == 1 and warning is not None and "last.pt" in warning and "last.prev.pt" in warning
    path.unlink()  # killed between the two renames
    assert checkpoint.latest(path)[0]["epoch"] == 1
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        checkpoint.latest(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"schema": 2, "epoch": 3}, "is of schema 2, and this version of atbench reads 1"),
        ({"epoch": 3}, "is of schema None"),
        ([1, 2], "is of schema None"),
        ({"schema": 1, "epoch": 3}, "lacks its part 'model'"),
        ({"schema": 1, "model": torch.nn.Linear(1, 1)}, "holds more than tensors"),
    ],
)
def test_what_is_whole_and_no_checkpoint_of_this_version_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(checkpoint.encode(content))
    checkpoint.save(checkpoint.previous(path), {"model": {}})
    for opened in (checkpoint.read, checkpoint.latest):
        with pytest.raises(DataError, match=rf"last\.pt — {said}"):
            opened(path, needs=("model",))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match=r"a\.pt.*bytes could not be written \(No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_state_of_every_method_opens_without_pickled_code(name: str) -> None:
    average = () if name in ("kd_swa", "cfa") else ("plus=ema",)  # they bring their own
    state = trainer_of(name, ALONE, Log(), *average).state()
    torch.load(io.BytesIO(checkpoint.encode(state)), weights_only=True)
