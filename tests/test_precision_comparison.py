"""The third table of docs/cpu.md: its arithmetic, and its runs on a program that writes records instead of training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atbench.interval import accuracy_figures
from scripts import precision_comparison, table_runs
from scripts.precision_comparison import Cell, Figures, cifar10_slice, difference, rows, spread


def test_differences_are_paired_by_seed_and_their_interval_is_student_s() -> None:
    found = {}
    for seed, (fp32, bf16) in enumerate([(70.0, 71.0), (72.0, 71.0), (74.0, 77.0)]):
        found[Cell(seed, "mnist14", "pgd_at", "fp32")] = Figures(97.0, fp32, 60.0 + seed, 80.0)
        found[Cell(seed, "mnist14", "pgd_at", "bf16")] = Figures(96.0, bf16, 60.5 + seed, None if seed else 50.0)
    for seed, gap in ((0, 2.0), (2, -2.0)):
        found[Cell(seed, "mnist14", "trades", "fp32")] = Figures(95.0, 70.0, 50.0, 90.0)
        found[Cell(seed, "mnist14", "trades", "bf16")] = Figures(95.0, 70.0 + gap, 50.5, 60.0)
    found[Cell(1, "mnist14", "trades", "bf16")] = Figures(95.0, 40.0, 40.0, 60.0)  # its fp32 run is not done
    table = [tuple(row) for row in rows(found)]
    assert table[:2] == [
        ("mnist14", "`pgd_at`", "–", "3", "97.0 ± 0.0", "72.0 ± 2.0", "", "61.0 ± 1.0", "", "80 ± 0"),
        # mean 1, standard deviation 2, t(0.975, 2) = 4.303: ± 4.97
        ("mnist14", "`pgd_at`", "bf16", "3", "96.0 ± 0.0", "73.0 ± 3.5", "+1.0 [-4.0, +6.0]", "61.5 ± 1.0",
         "+0.5 [+0.5, +0.5]", "50"),
    ]  # fmt: skip
    # 1, -1, 3, 2, -2: mean 0.6, standard deviation 2.07, t(0.975, 4) = 2.776: ± 2.57
    assert table[-1] == (
        "mnist14",
        "all pairs",
        "bf16",
        "5",
        "",
        "",
        "+0.6 [-2.0, +3.2]",
        "",
        "+0.5 [+0.5, +0.5]",
        "",
    )
    assert len(table) == 5


def test_a_single_run_has_no_spread_and_a_single_pair_no_interval() -> None:
    assert (spread([70.04]), spread([]), difference([-0.26]), difference([])) == ("70.0", "–", "-0.3", "")


class Program:
    """Stands in for `atbench`: leaves the records of a run, or the checkpoint of one that is cut off."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.killed = False

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        words = command[3:]
        self.calls.append(words)
        key, _, path = words[1].rpartition("=")
        run = Path(path) / "run" if key == "runs" else Path(path)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / "last.pt").touch()
        if not self.killed:
            right, name = (400, "last") if words[0] == "train" else (300, "auto-n500/last")
            record = {key: accuracy_figures(right, 500) for key in ("clean", "robust")}
            file = run / "evaluation" / f"{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({**record, "steps": [{"k": 20, **accuracy_figures(right - 50, 500)}]}))
            (run / "status.json").write_text(json.dumps({"state": "done"}))
        return subprocess.CompletedProcess(command, int(self.killed), "", "")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    (tmp_path / "cpu.md").write_text(f"before\n{precision_comparison.BEGIN}\nold\n{table_runs.END}\nafter\n")
    monkeypatch.setattr(precision_comparison, "DOCUMENT", tmp_path / "cpu.md")
    monkeypatch.setattr(table_runs.subprocess, "run", program := Program())
    return program


def run(tmp_path: Path, *words: str) -> list[str]:
    """The rows that are written."""
    here = ["--runs", str(tmp_path / "runs"), "--data-dir", str(tmp_path), "--settings", "mnist14"]
    precision_comparison.main([*here, "--methods", "trades", *words])
    text = (tmp_path / "cpu.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    return [line for line in text.splitlines() if "`trades`" in line]


def test_what_is_done_is_left_and_what_was_stopped_goes_on(tmp_path: Path, program: Program) -> None:
    program.killed = True
    assert run(tmp_path) == [] and len(program.calls) == 6
    program.killed = False
    first, second = run(tmp_path)
    assert [call[0] for call in program.calls[6:]] == ["train", "eval"] * 6
    assert all(call[1].startswith("resume=") for call in program.calls[6::2])
    assert first.endswith("| – | 3 | 80.0 ± 0.0 | 70.0 ± 0.0 |  | 60.0 ± 0.0 |  | – |"), "no time of half a run"
    assert "| bf16 | 3 |" in second and "+0.0 [+0.0, +0.0]" in second
    assert [run(tmp_path), run(tmp_path, "--write")] == [[first, second]] * 2 and len(program.calls) == 18


def test_each_run_has_its_seed_and_precision_and_its_time(tmp_path: Path, program: Program) -> None:
    rows = run(tmp_path)
    trained = [{*call} for call in program.calls if call[0] == "train"]
    expected = [(seed, *pair) for seed in (0, 1, 2) for pair in (("fp32", "fp32"), ("bf16", "bf16"))]
    for words, (seed, attack, update) in zip(trained, expected, strict=True):
        assert {f"seed={seed}", f"train.precision.attack={attack}", f"train.precision.update={update}"} < words
    assert all(row.endswith("± 0 |") for row in rows)


def test_the_slice_of_cifar10_is_its_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_comparison, "SLICE", 20)
    rng, parts = np.random.default_rng(0), {}
    (tmp_path / "cifar10").mkdir()
    for split, n in (("train", 40), ("test", 30)):
        parts[split] = {"image": rng.integers(0, 256, (n, 32, 32, 3), np.uint8), "label": np.arange(n) % 10}
        np.savez(tmp_path / "cifar10" / f"{split}.npz", **parts[split])
    words = cifar10_slice(tmp_path, tmp_path / "slice")
    assert (
        words[0] == f"dataset.source.path={tmp_path}/slice" and "dataset.source.mean=[0.4914, 0.4822, 0.4465]" in words
    )
    for split, n in (("train", 20), ("test", 30)):
        made = np.load(tmp_path / "slice" / f"{split}.npz")
        assert np.array_equal(made["image"], parts[split]["image"][:n])
        assert np.array_equal(made["label"], parts[split]["label"][:n])


def test_an_unknown_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        precision_comparison.main(["--settings", "mnist"])
    assert "--settings: there is no mnist" in capsys.readouterr().err
