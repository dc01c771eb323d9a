"""The stages of the acceptance on a GPU that compare, ask the bench and make rows, as far as a CPU can show them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.gpu import bench, capture, ranks, rows
from scripts.gpu.report import faults, markdown
from scripts.gpu.session import OutOfTime, Session
from scripts.repro_rows import HOW, table1
from tests.support.configs import resolved
from tests.support.repro_program import Program

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(CPU, tmp_path / "out", smoke=True, runs=tmp_path / "runs", data_dir=Path("images"))


# Captured searches.


def test_plain_training_is_equal_to_itself(session: Session) -> None:
    cell = capture.equality(session, "pgd_at")
    assert cell == {"after 1": 0.0, "after 3": 0.0, "twice plain": 0.0, "captured": False, "agrees": True}


def test_weights_are_kept_after_each_step(session: Session) -> None:
    states, _ = capture.train(session, "fast_at", captured=False)
    assert len(states) == 3 and all(capture.difference(a, b) > 1e-6 for a, b in pairwise(states))


@pytest.mark.parametrize(
    ("name", "error", "noise", "replays", "agrees"),
    [
        ("pgd_at", 0.0, 0.0, 2, True),
        ("pgd_at", 1e-7, 0.0, 2, False),
        ("pgd_at", 1e-7, 1e-7, 2, None),  # the device itself computes something else each time
        ("pgd_at", 0.0, 0.0, 0, False),  # it should have been captured
        ("llr", 0.0, 0.0, 0, True),  # it differentiates twice, and is not
    ],
)
def test_what_is_said_of_a_capture(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: float,
    noise: float,
    replays: int,
    agrees: bool | None,
) -> None:
    trainings = 0

    def train(_: Session, name: str, captured: bool) -> tuple[list[dict[str, Tensor]], int]:
        nonlocal trainings
        trainings += 1
        last = error if captured else noise * (trainings == 2)
        states = [{"w": torch.full((3,), 0.5 + added, dtype=torch.float64)} for added in (0.0, 0.0, last)]
        return states, replays if captured else 0

    monkeypatch.setattr(capture, "train", train)
    cell = capture.equality(replace(session, device=CUDA), name)
    assert cell.get("agrees") is agrees and cell["captured"] == (replays > 0)
    assert cell["after 1"] == 0 and cell["after 3"] == pytest.approx(error, rel=1e-6)
    record = {"device": "X", "stages": {"capture": {"done": True, "cells": {f"{name}/equal": cell}}}}
    assert bool(faults(record)) == (agrees is False)


def test_replays_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", launched.append)
    outside = torch.cuda.CUDAGraph.replay
    with capture.counted_replays() as count:
        torch.cuda.CUDAGraph.replay("a graph")
        torch.cuda.CUDAGraph.replay("another")
    assert count == [2] and launched == ["a graph", "another"] and torch.cuda.CUDAGraph.replay is outside


def test_captured_means_true_on_cuda_alone(session: Session) -> None:
    assert capture.word(session, True) == "train.capture=auto"
    on_cuda = replace(session, device=CUDA)
    assert [capture.word(on_cuda, on) for on in (True, False)] == ["train.capture=true", "train.capture=false"]


def test_both_ways_are_timed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def cell_of(_: Session, name: str, batch: str, kind: str, *own: str) -> dict[str, Any]:
        return {"images_per_second": 300.0 if own == ("train.capture=true",) else 200.0}

    monkeypatch.setattr(capture, "cell_of", cell_of)
    cell = capture.speed(replace(session, device=CUDA), "pgd_at", "bf16")
    assert cell == {"captured images/s": 300.0, "plain images/s": 200.0, "ratio": 1.5}


# Two processes.


@pytest.mark.slow
def test_two_processes_train_what_one_trains() -> None:
    """Real processes under torchrun, over gloo."""
    cell = ranks.compare(CPU)
    assert cell["agrees"] and cell["weights"] < 1e-12


def test_one_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert ranks.compare(CUDA) == {"note": "one device: not run"}


def test_processes_that_train_something_else_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "weights", lambda device, file, count: {"w": torch.tensor([1.0, 2.0 + 1e-6 * count])})
    cell = ranks.compare(CPU)
    assert cell["weights"] == pytest.approx(5e-7, rel=0.1) and not cell["agrees"]


# What `atbench bench` says.


@pytest.mark.parametrize("code", [0, 1])
def test_the_bench_s_json_is_kept_and_shown(session: Session, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    rows = [
        {"name": "PGD-AT", "ratio": 1.25, "values": [1.0, 2.0]},
        {"name": "k sweep", "ratio": 0.9, "bar": {"at": 1}},
    ]
    said = {"device": "X", "versions": {"torch": "2"}, "rows": rows}
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, code, json.dumps(said), "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "cell_of", lambda *_: {"images_per_second": 1.0})
    bench.bench(replace(session, device=CUDA, smoke=False))
    assert asked == [["bench", kind, "--device", "cuda", "--json"] for kind in ("train", "eval", "data", "start")]
    cells = session.record["stages"]["bench"]["cells"]
    assert cells["atbench bench train"] == {"exit": code, "json": said} and len(cells) == 4 * 2 * 3 + 4
    text = markdown({"device": "X", **session.record})
    assert f"### atbench bench eval (exit code {code})\n\n|  |  |\n| --- | --- |\n| device | X |\n\n" in text
    assert "|  | ratio |\n| --- | --- |\n| PGD-AT | 1.25 |\n| k sweep | 0.9 |\n" in text


def test_a_bench_that_fails_leaves_its_last_line(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 2, "", "warning: w\nerror: bench: x — y; z\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(RuntimeError, match="exit code 2: error: bench: x — y; z"):
        bench.program(session, ["bench", "train"])


# Rows.


def test_every_row_of_table_1_has_its_place() -> None:
    assert sorted(rows.ORDER) == sorted(table1("short")) and len(set(rows.ORDER)) == len(rows.ORDER)
    assert rows.ORDER[:4] == ("pgd_at", "trades", "mart", "fast_at")


def test_rows_are_made_in_order_and_gone_on_with(
    session: Session, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    real = replace(session, smoke=False)

    def until(calls: int) -> None:
        if len(program.calls) > calls:
            raise OutOfTime

    program.act = lambda: until(4)
    with pytest.raises(OutOfTime):
        rows.rows(real)
    first, thousand, whole, second, cut = program.calls
    assert {"experiment=speedrun", "eval=standard", "data_dir=images", "seed=0"} < {*first}
    assert {"eval=auto", "eval.limit=1000", "eval.name=autoattack-first"} < {*thousand}
    assert {"eval=auto", "eval.name=autoattack"} < {*whole} and not any("eval.limit" in word for word in whole)
    assert sum(word.startswith("eval.name=") for word in thousand) == 1
    assert {"experiment=table1/pgd_at", "tier=short"} < {*second} and cut[0] == "eval"
    cells = real.stage("rows")["cells"]
    assert [*cells] == ["speedrun on 1000 images", "speedrun"] and not real.stage("rows")["done"]
    assert cells["speedrun"]["AutoAttack"] < cells["speedrun"]["clean"] and cells["speedrun"]["training s"] == 45.2
    program.calls.clear()
    program.act = lambda: None
    program.fails["experiment=table1/trades"] = 2  # twice in this call, and not in the next
    rows.rows(real)
    assert program.calls[0][0] == "eval", "pgd_at was trained in the call before"
    assert real.stage("rows")["done"] and "exit 5" in real.stage("rows")["cells"]["trades"]["error"]
    written = {path.stem for path in (tmp_path / "results" / "short").iterdir()}
    assert written == {"speedrun", *rows.ORDER} - {"trades"}
    program.calls.clear()
    rows.rows(real)
    assert program.verbs() == ["train", "eval"] and "error" not in real.stage("rows")["cells"]["trades"]


@pytest.mark.slow
def test_rows_really_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny trainings on digits, attacked by AutoAttack."""
    monkeypatch.setitem(HOW, "smoke", replace(HOW["smoke"], images=50, autoattack_images=10))  # type: ignore[arg-type]
    monkeypatch.setattr(rows, "FIRST", 8)
    rows.rows(replace(session, end=float("inf"), data_dir=session.folder))
    cells = session.stage("rows")["cells"]
    assert [*cells] == ["speedrun on 8 images", "speedrun", "pgd_at"]
    assert all("error" not in cell for cell in cells.values()), cells
    assert {path.name for path in (session.folder / "results" / "smoke").iterdir()} == {"speedrun.json", "pgd_at.json"}


# The setting that is to be fast.


def test_the_speedrun_is_a_benchmark_s_setting_with_fewer_epochs() -> None:
    """What it changes of experiment=fastat/liet, and nothing else of the method, the data and the threat."""
    fast, peer = resolved("experiment=speedrun"), resolved("experiment=fastat/liet")
    for part in ("method", "dataset", "attack"):
        assert fast[part] == peer[part], part
    assert fast.model.about.name == "preactresnet18" and fast.attack.eps == pytest.approx(8 / 255)
    assert (fast.train.epochs, fast.train.schedule.epochs) == (40, 40)
    scale = fast.train.batch_size / peer.train.batch_size
    assert fast.train.optimizer.lr / peer.train.optimizer.lr == scale == 2, "the rate goes with the batch"
    updates = peer.train.epochs * (49_000 // peer.train.batch_size)
    assert fast.plus.ema.horizon == pytest.approx(1 / (1 - peer.plus.ema.decay) / updates, rel=0.06)
    assert fast.train.precision["attack"] == fast.train.precision["update"] == "bf16"
    assert fast.eval.about.name == "auto" and list(fast.eval.checkpoints) == ["best"]
