"""threads=auto: a rule on idle cores and on the network's work; never more than torch's own number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from atbench.training import cpu_threads
from atbench.training.cpu_threads import idle_cores, settle, threads, worth


def stat(busy: int, idle: int) -> str:
    return f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


@pytest.mark.parametrize(("busy", "idle", "free"), [(0, 80, 8), (80, 0, 1), (20, 60, 6), (29, 51, 5), (70, 10, 1)])
def test_as_many_as_there_are_idle_cores(
    busy: int, idle: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads, "STAT", tmp_path / "stat")
    monkeypatch.setattr(cpu_threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(
        cpu_threads.time, "sleep", lambda seconds: (tmp_path / "stat").write_text(stat(1000 + busy, 1000 + idle))
    )
    for most in (64, 3):  # never more than torch would take
        (tmp_path / "stat").write_text(stat(1000, 1000))
        assert idle_cores(most) == min(free, most)


def test_the_load_of_the_last_minute_where_the_system_tells_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads, "STAT", tmp_path / "none")
    monkeypatch.setattr(cpu_threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cpu_threads.os, "getloadavg", lambda: (5.2, 0.0, 0.0))
    assert idle_cores(8) == 3
    monkeypatch.delattr(cpu_threads.os, "getloadavg")
    assert idle_cores(8) == 8


def test_a_small_network_is_worth_one_thread_and_its_mode_is_kept() -> None:
    small, wide = (nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)) for width in (2, 400))
    operations = 2 * 9 * 400 * 36 * 1000  # 3×3 taps, 6×6 places, 1,000 images
    assert worth(small, (1, 8, 8), 32) == 1
    assert worth(wide, (1, 8, 8), 1000) == round(operations / cpu_threads.WORK) > 1
    assert wide.training and int(wide[1].num_batches_tracked) == 0


def test_the_number_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "idle_cores", lambda most: 1)
    before = torch.get_num_threads()
    for asked in ("auto", None, 1):
        with threads(asked):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [("auto", {}, 1), (None, {}, 1), ("auto", {"threads": 2}, 2), ("auto", {"threads": 99}, 4), (3, {"threads": 2}, 3)],
)
def test_a_run_that_goes_on_has_the_threads_that_it_had(
    asked: int | str | None, environment: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small network one; never more than there are cores; a number that was asked for stands."""
    monkeypatch.setattr(cpu_threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(cpu_threads, "idle_cores", lambda most: 4)
    with threads(asked):
        settle(asked, nn.Conv2d(1, 2, 3), (1, 8, 8), 32, environment)
        assert torch.get_num_threads() == expected
