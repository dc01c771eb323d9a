"""The acceptance on a GPU (scripts/gpu_acceptance.py), as far as a CPU can show it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.runs.seeding import Draws, generator
from scripts.gpu.acceptance import work
from scripts.gpu.bench import METHODS, cell_of
from scripts.gpu.parity import compare, first_step, parity
from scripts.gpu.report import faults, markdown
from scripts.gpu.session import ROOT, OutOfTime, Session
from scripts.gpu.trainers import configuration, noise, same_draws
from scripts.gpu_acceptance import main

CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(CPU, tmp_path / "out", smoke=True, runs=tmp_path / "runs")


@pytest.mark.slow
def test_parity_compares_loss_image_and_weights(session: Session) -> None:
    parity(session, ["trades", "fgsm_mep"])
    cells = session.stage("parity")["cells"]
    assert session.stage("parity")["done"] and len(cells) == 4
    assert all(cell["loss"] == cell["weights"] == 0 for cell in cells.values())
    assert cells["trades/float64"]["image"] == 0 and cells["trades/float64"]["agrees"]
    assert cells["fgsm_mep/float32"]["image"] is None, "its search shares the pass of the update"


def test_parity_sees_a_device_that_computes_something_else() -> None:
    step = first_step("pgd_at", CPU, torch.float64)
    key = next(key for key, value in step.after.items() if not torch.equal(value, step.before[key]))
    for other, what in (
        (replace(step, images=[image + 0.01 for image in step.images]), "pixels"),
        (replace(step, losses=[loss * 1.001 for loss in step.losses]), "loss"),
        (replace(step, after={**step.after, key: step.after[key] + 0.01}), "weights"),
    ):
        result = compare(step, other, "float64")
        assert result[what] > 1e-4 and not result["agrees"]
        assert "agrees" not in compare(step, other, "float32")


def test_draws_are_the_same_for_all_devices() -> None:
    """They are drawn on the CPU whatever the tensor's device, here `meta`, and handed over."""
    plain = Draws(generator("cpu", 3, "x"))
    first, second = plain.normal(torch.empty(4, 2)), plain.normal(torch.empty(4, 2))
    with same_draws():
        draws = Draws(generator("cpu", 3, "x"))
        assert draws.normal(torch.empty(4, 2, device="meta")).device.type == "meta"
        assert torch.equal(draws.normal(torch.empty(4, 2)), second)
        assert torch.equal(Draws(generator("cpu", 3, "x")).normal(torch.empty(4, 2)), first)


@pytest.mark.parametrize(("name", "searches"), [("pgd_at", True), ("fgsm_mep", False)])
def test_bench_times_steps(session: Session, name: str, searches: bool) -> None:
    assert name in METHODS
    cell = cell_of(session, name, "8", "fp32")
    assert cell["images_per_second"] > 0 and cell["steps"] >= 1
    assert 0.1 < cell["attack_share"] < 1 if searches else cell["attack_share"] < 0.1, "it hands the batch back"
    assert cell["peak_gib"] is None, "a CPU has no such figure"


def test_a_call_goes_on_where_the_last_one_ended(session: Session) -> None:
    measured: list[str] = []

    def measure(cell: str) -> dict[str, Any]:
        measured.append(cell)
        if cell == "b":
            session.end = time.monotonic()  # the time is over after this one
        if cell == "c":
            raise ValueError("out of luck\nand more")
        return {"value": 1.0}

    with pytest.raises(OutOfTime):
        session.fill("bench", "abcd", measure)
    record = json.loads((session.folder / "acceptance.json").read_text())
    assert measured == ["a", "b"] and not record["stages"]["bench"]["done"]
    again = replace(session, end=float("inf"), record=record)
    again.fill("bench", "abcd", measure)
    assert measured == ["a", "b", "c", "d"] and again.stage("bench")["done"]
    assert again.stage("bench")["cells"]["c"] == {"error": "ValueError: out of luck"}
    assert faults(again.record) == ["bench c: ValueError: out of luck"]


def test_timed_images_are_of_cifar_10s_form() -> None:
    source = noise(configuration("dataset=cifar10"), 300)
    assert source.shape == (3, 32, 32) and len(source.classes) == 10 and len(source.train) == 300


def test_without_cuda_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "out")]) == 5
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: device: cuda") and said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_that_there_is_no_cuda_is_said_before_the_program_is_imported() -> None:
    code = """
import sys, torch
torch.cuda.is_available = lambda: False
from scripts.gpu_acceptance import main
assert main([]) == 5
heavy = {"torchvision", "hydra", "omegaconf", "sklearn", "scripts.gpu.acceptance"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_call_writes_json_and_tables_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--smoke", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert main([*words, "--only", "versions"]) == 0
    record = json.loads((tmp_path / "cpu/acceptance.json").read_text())
    assert record["stages"]["versions"]["cells"]["here"]["torch"] == torch.__version__
    assert "| here |" in (tmp_path / "cpu/acceptance.md").read_text()
    # A stage that looks at no clock is ended by the alarm: 10.3 s less the reserve.
    monkeypatch.setitem(work.__globals__["STAGES"], "parity", lambda _: time.sleep(60))
    assert main([*words, "--only", "parity", "--minutes", str(10.3 / 60)]) == 75
    assert len(json.loads((tmp_path / "cpu/acceptance.json").read_text())["calls"]) == 2
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert main([*words, "--only", "versions"]) == 2
    assert main([*words, "--only", "verions"]) == 2
    assert "did you mean 'versions'?" in capsys.readouterr().err


def test_tables_show_every_stage_and_what_failed() -> None:
    cells = {"a/float64": {"loss": 1e-3, "image": None, "agrees": False}, "b/float32": {"loss": 0.0, "image": 0.5}}
    record = {"device": "X", "stages": {"parity": {"done": False, "cells": cells}}}
    text = markdown(record)
    assert "| a/float64 | 0.001 | – | no |" in text and "| b/float32 | 0 | 0.5 |  |" in text
    assert "(not finished)" in text and text.count("(not begun)") == 6
    assert faults(record) == ["parity a/float64: does not agree or failed"]
    tests = {"tests": {"done": True, "cells": {"cuda": {"passed": 3, "failed": 1}}}}
    assert faults({"device": "X", "stages": tests}) == ["tests cuda: does not agree or failed"]
