"""Which exceptions are a failure of the machine, and end in one line and exit code 5."""

from __future__ import annotations

import errno

import pytest
import torch

from atbench.cli.main import main
from atbench.errors import DataError, exit_code, expected
from tests.support.stub import Stub

LOST = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:5")
MACHINE = {
    "host": MemoryError(),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "full": OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
    "read-only": OSError(errno.EROFS, "Read-only file system", "x"),
    "forbidden": PermissionError(errno.EACCES, "Permission denied", "x"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_a_failure_of_the_machine_is_one_line(name: str, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.act = lambda cfg: (_ for _ in ()).throw(MACHINE[name])
    assert main(["train"]) == 5
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and " — " in err


def test_a_lost_process_is_one_line(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected(LOST) is None, "of one process, it is a fault of the program"
    stub.act = lambda cfg: (_ for _ in ()).throw(LOST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train"]) == 5
    assert capsys.readouterr().err.startswith("error: processes: rank 0 — has lost another one")


def test_the_rest_stays_what_it_is() -> None:
    refusal = DataError("a", "b", "c", "d")
    assert expected(refusal) is refusal
    for error in (RuntimeError("shapes"), FileNotFoundError(2, "no", "x"), ValueError("out of memory"), KeyError("a")):
        assert expected(error) is None and exit_code(error) == 1
