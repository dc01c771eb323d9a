"""Checkpoints: whole or not, and the one before."""

from __future__ import annotations

import hashlib
import io
import random
import resource
import tracemalloc
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch.utils.serialization import config

from atbench.errors import DataError, EnvironmentFault, Interrupted
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


def encoded(content: Any) -> bytes:
    file = io.BytesIO()
    checkpoint.encode(content, file)
    return file.getvalue()


def test_every_truncation_and_every_flipped_bit_is_noticed() -> None:
    data = encoded(CONTENT)
    assert checkpoint.whole(io.BytesIO(data))
    rng = random.Random(0)
    for length in [0, 1, 65, 66, len(data) - 1, *(rng.randrange(len(data)) for _ in range(200))]:
        assert not checkpoint.whole(io.BytesIO(data[:length]))
    for place in [*range(len(data) - 70, len(data)), *(rng.randrange(len(data)) for _ in range(500))]:
        hurt = bytearray(data)
        hurt[place] ^= 1 << rng.randrange(8)
        assert not checkpoint.whole(io.BytesIO(hurt))


@pytest.mark.parametrize("numbers", [0, 1, 1000, checkpoint.CHUNK // 4, checkpoint.CHUNK // 4 + 1, 1_000_003])
def test_it_is_the_archive_of_torch_with_its_checksum_as_comment(numbers: int, tmp_path: Path) -> None:
    content = {"schema": checkpoint.SCHEMA, **CONTENT, "numbers": torch.arange(numbers, dtype=torch.int32)}
    archive = io.BytesIO()
    with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
        torch.save(content, archive)
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    checkpoint.save(tmp_path / "a.pt", content)
    assert (tmp_path / "a.pt").read_bytes() == archive.getvalue()[:-2] + b"\x40\x00" + digest.encode()
    with ZipFile(tmp_path / "a.pt") as opened:
        assert opened.comment.decode() == digest


def test_other_files_keep_their_crc(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", CONTENT)
    torch.save(CONTENT, tmp_path / "b.pt")
    with ZipFile(tmp_path / "b.pt") as opened:
        assert opened.testzip() is None


@pytest.mark.parametrize("sizes", [[1] * 9, [2, 1, 3, 3], [9], [0, 8, 0, 1], [7, 2], [1, 8]])
def test_all_but_the_end_is_passed_on_however_it_comes(sizes: list[int]) -> None:
    data, file = b"archive" + b"\0\0", io.BytesIO()
    archive = checkpoint._Hashed(file)
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        assert archive.write(memoryview(data)[end - size : end]) == size
        assert file.getvalue() == data[: max(0, end - 2)]
    archive.finish()
    assert file.getvalue() == b"archive\x40\x00" + hashlib.sha256(data).hexdigest().encode()


class Addresses(io.RawIOBase):
    """A file that keeps of what is written to it where it lay in memory."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def write(self, data: Any) -> int:
        self.places.append((np.frombuffer(data, np.uint8).ctypes.data, len(data)))
        return len(data)


def test_a_tensor_is_written_from_where_it_lies() -> None:
    numbers, file = torch.zeros(1 << 20, dtype=torch.float64), Addresses()
    checkpoint.encode({"numbers": numbers}, file)  # type: ignore[arg-type]
    begin, size = numbers.data_ptr(), numbers.nbytes
    assert sum(length for place, length in file.places if begin <= place < begin + size) == size - 2  # held back


def test_nothing_as_large_as_it_is_kept_beside_it(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", {"numbers": torch.rand(1 << 22)}
    tracemalloc.start()
    try:
        checkpoint.save(path, content)
        assert torch.equal(checkpoint.read(path)["numbers"], content["numbers"])
        assert tracemalloc.get_traced_memory()[1] < 4 * checkpoint.CHUNK < path.stat().st_size / 8
    finally:
        tracemalloc.stop()


def test_what_is_read_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = tmp_path / "last.pt", checkpoint.whole
    checkpoint.save(path, {"epoch": 1})

    def replaced(file: BinaryIO) -> bool:
        checked = whole(file)
        (tmp_path / "other").write_bytes(b"damaged")
        (tmp_path / "other").replace(path)
        return checked

    monkeypatch.setattr(checkpoint, "whole", replaced)
    assert checkpoint.read(path)["epoch"] == 1


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
    path.write_bytes(encoded(content))
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
    with pytest.raises(EnvironmentFault, match=r"a\.pt.*could not be written \(No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_within_it_leaves_the_old_file(tmp_path: Path) -> None:
    path, limits = tmp_path / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save(path, {"epoch": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # no file can grow beyond
    try:
        with pytest.raises(EnvironmentFault, match=r"last\.pt.*could not be written \(File too large"):
            checkpoint.save(path, {"epoch": 2, "numbers": torch.zeros(1 << 20)}, keep_previous=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read(path)["epoch"] == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError(28, "full"), KeyboardInterrupt(), Interrupted(143, "train", "", "", "")])
def test_what_ends_a_write_is_what_is_raised(fault: BaseException) -> None:
    """torch goes on to its archive's end, and says that it is too short."""

    class Ending(io.RawIOBase):
        def __init__(self, left: int) -> None:
            self.left = left

        def write(self, data: Any) -> int:
            self.left -= 1
            if self.left == 0:
                raise fault
            return len(data)

    content = {str(n): torch.zeros(checkpoint.CHUNK) for n in range(2)}
    counter = Ending(-1)
    checkpoint.encode(content, counter)  # type: ignore[arg-type]
    for number in range(1, -counter.left):
        with pytest.raises(type(fault)) as raised:
            checkpoint.encode(content, Ending(number))  # type: ignore[arg-type]
        assert raised.value is fault


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_state_of_every_method_opens_without_pickled_code(name: str) -> None:
    average = () if name in ("kd_swa", "cfa") else ("plus=ema",)  # they bring their own
    state = trainer_of(name, ALONE, Log(), *average).state()
    torch.load(io.BytesIO(encoded(state)), weights_only=True)
