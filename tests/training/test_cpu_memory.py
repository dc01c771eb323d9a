"""Freed memory stays with a run: no page is fetched from the system twice."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch

from atbench.training import cpu_memory, reused_memory

glibc = pytest.mark.skipif(cpu_memory._glibc() is None, reason="the C library is not glibc")


def page_faults() -> int:
    """Pages that a step with an activation of 40 MiB fetches; from 32 MiB glibc never keeps a block of itself."""
    for step in range(8):
        if step == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(10 << 20).zero_()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5


def in_new_process(**variables: str) -> list[int]:
    """Faults of a step before, within and after the context."""
    program = (
        "from atbench.training import reused_memory\nfrom tests.training.test_cpu_memory import page_faults\n"
        "before = page_faults()\nwith reused_memory():\n    inside = page_faults()\n"
        "print(before, inside, page_faults())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**kept, **variables}, capture_output=True, text=True, check=True
    )
    return [int(number) for number in done.stdout.split()]


@glibc
def test_a_step_takes_the_memory_of_the_one_before() -> None:
    before, inside, _ = in_new_process()
    assert inside < 5 < before  # huge pages are 20 of them


@glibc
@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "0", False),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072", False),
        ("MALLOC_ARENA_MAX", "2", True),  # says nothing about what is kept
    ],
)
def test_the_settings_of_the_user_stand(name: str, value: str, kept: bool) -> None:
    _, inside, _ = in_new_process(**{name: value})
    assert (inside < 5) == kept


@glibc
def test_memory_goes_back_at_the_end() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with reused_memory():
        blocks = [torch.zeros(2 << 20) for _ in range(12)]
        del blocks
        inside = resident()
    assert resident() < inside - (64 << 20)


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda name: object())
    assert cpu_memory._glibc() is None
    with reused_memory():
        pass
