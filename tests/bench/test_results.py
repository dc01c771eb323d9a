"""Bars, rows and turns of `atbench bench`."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

from atbench.bench import KINDS
from atbench.bench.clock import Clock, Work, take_turns
from atbench.bench.results import Bar, Row, bar_of, figure, ratios, read_bars, show


def test_a_ratio_is_theirs_over_ours_round_by_round() -> None:
    """A machine that is twice as slow in one round is so for both."""
    assert ratios([2.0, 8.0, 3.0], [1.0, 4.0, 1.0]) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_the_median_is_what_the_bar_judges() -> None:
    row = Row("x", "x", "×", (0.5, 1.2, 9.0), Bar("why", at_least=1.0))
    assert row.median == 1.2 and row.verdict == "pass"
    assert Row("x", "x", "×", (0.5, 0.99, 9.0), row.bar).verdict == "falls short"
    assert Row("x", "x", "×", (1.0,), Bar("why", at_least=1.0)).verdict == "pass", "a bar is met at the bar"
    assert Row("x", "x", "×", (1.02,), Bar("why", at_most=1.02)).verdict == "pass"
    assert Row("x", "x", "×", (1.0201,), Bar("why", at_most=1.02)).verdict == "falls short"
    assert Row("x", "x", "×", (1.0,)).verdict is None


def test_the_record_of_a_row() -> None:
    record = Row("a/b", "what", "s", (3.0, 1.0, 2.0), Bar("because", at_most=2.5)).record()
    assert record == {
        "name": "a/b",
        "what": "what",
        "unit": "s",
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
        "values": [3.0, 1.0, 2.0],
        "bar": {"at_least": None, "at_most": 2.5, "why": "because"},
        "verdict": "pass",
    }


def test_a_bar_is_one_sided() -> None:
    for given in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError):
            Bar("why", **given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bars_are_read(kind: str) -> None:
    bars = read_bars(kind)
    assert bars and all(bar.why for bar in bars.values())


def test_a_bar_of_a_group_and_one_of_a_name() -> None:
    bars = {"floor/*": Bar("all", at_most=1.0), "floor/x": Bar("own", at_most=2.0), "steps": Bar("s", at_least=1.0)}
    assert bar_of(bars, "floor/pgd_at") is bars["floor/*"] and bar_of(bars, "floor/x") is bars["floor/x"]
    assert bar_of(bars, "steps") is bars["steps"] and bar_of(bars, "steps/more") is None


def test_tools_take_turns_in_an_order_that_rotates() -> None:
    order: list[str] = []
    tools: dict[str, Work] = {name: lambda name=name: order.append(name) for name in "abc"}

    def clock(work: Work) -> float:
        work()
        return float(len(order))

    seconds = take_turns(tools, 3, clock, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_the_clock_of_a_cpu_counts_its_work_and_no_memory() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.seconds(lambda: None) < 0.1 < clock.seconds(lambda: sum(i * i for i in range(4_000_000)))
    assert clock.peak_bytes(lambda: None) is None


class Event:
    """A CUDA event that notes what is asked of it."""

    log: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.log.append("record")

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        self.log.append("read")
        return 1500.0


def test_the_clock_of_a_gpu_reads_events_after_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "log", log := [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    assert Clock(torch.device("cuda")).seconds(lambda: log.append("work")) == 1.5
    assert log == ["wait", "record", "work", "record", "wait", "read"]


def test_the_table_and_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("a", "what is measured", "×", (1.234567, 2.0, 3.0), Bar("why", at_least=5.0))]
    document = {
        "notes": ["ART is not installed"],
        "versions": {"torch": "2", "ART": None},
        "device": "CPU",
        "threads": 1,
    }
    show(document, rows, as_json=False)
    said = capsys.readouterr().out
    for part in ("what is measured", "2 ×", "1.23 to 3", "≥ 5", "falls short", "ART is not installed", "torch 2"):
        assert part in said
    show(document, rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == document
    assert [figure(value) for value in (0.98765, 12.345, 31900.4)] == ["0.988", "12.3", "31,900"]
