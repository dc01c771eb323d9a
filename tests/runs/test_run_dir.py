"""The run folder: one owner at a time, and files that are damaged end in one line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import filelock
import pytest

from atbench.errors import DataError, EnvironmentFault, Interrupted
from atbench.runs.run_dir import locked, read_json, set_status, status_recorded, write_bytes

DEAD = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "2026-01-01T00:00:00+00:00"}


def contend(folder: Path, rounds: int, together: Barrier, doubled: Any) -> None:
    """Try to own one folder after another, at the same moment as others; count two owners of one at a time."""
    for number in range(rounds):
        place = folder / str(number)
        together.wait()
        try:
            with locked(place):
                try:
                    (place / "held").touch(exist_ok=False)
                except FileExistsError:
                    doubled.value += 1
                together.wait()  # nobody lets go before all have tried
        except EnvironmentFault:
            together.wait()


@pytest.mark.faults
@pytest.mark.parametrize("left", ["nothing", "a dead owner's lock"])
def test_no_two_processes_own_a_folder(left: str, tmp_path: Path) -> None:
    context, rounds, processes = multiprocessing.get_context("spawn"), 60, 3
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        if left != "nothing":
            (tmp_path / str(number) / "lock").write_text(json.dumps(DEAD))
    together, doubled = context.Barrier(processes, timeout=60), context.Value("i", 0)
    workers = [context.Process(target=contend, args=(tmp_path, rounds, together, doubled)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * processes
    assert doubled.value == 0
    assert all((tmp_path / str(number) / "held").exists() for number in range(rounds)), "one of them is the owner"
    assert not list(tmp_path.glob("*/lock"))


def test_an_owner_is_named_and_its_lock_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        with (
            pytest.raises(EnvironmentFault, match=f"in use by process {os.getpid()} on {socket.gethostname()}"),
            locked(tmp_path),
        ):
            raise AssertionError("two owners")
        (tmp_path / "lock").write_text("{")  # while it is held, a damaged file says nothing
        with pytest.raises(EnvironmentFault, match="in use by another process"), locked(tmp_path):
            raise AssertionError("two owners")
    assert not (tmp_path / "lock").exists()
    (tmp_path / "lock").write_text(json.dumps({**DEAD, "host": "elsewhere"}))
    with pytest.raises(EnvironmentFault, match=r"on elsewhere .*if it is gone, remove .*lock"), locked(tmp_path):
        raise AssertionError("an owner that cannot be asked")
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("name", ["lock", "status.json"])
@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[1]", b"\xff\xfe{}"])
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name), status_recorded(tmp_path):
        raise AssertionError("began")
    assert (tmp_path / name).read_bytes() == content


def test_a_folder_on_a_read_only_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with (
        pytest.raises(EnvironmentFault, match=r"cannot be written \(Read-only file system\)"),
        status_recorded(tmp_path),
    ):
        raise AssertionError("began")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_does_not_hide_why_the_work_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Interrupted), status_recorded(tmp_path):
        monkeypatch.setattr("os.fsync", full)
        raise Interrupted(143, "train", "stopped", "a signal asked for it", "go on")
    monkeypatch.undo()
    set_status(tmp_path, epoch=1)
    assert read_json(tmp_path / "status.json")["state"] == "running"


def test_a_signal_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(descriptor: int) -> None:
        raise Interrupted(143, "train", "stopped", "a signal asked for it", "go on")

    monkeypatch.setattr("os.fsync", stopped)
    with pytest.raises(Interrupted):
        write_bytes(tmp_path / "a", b"new")
    assert list(tmp_path.iterdir()) == []
