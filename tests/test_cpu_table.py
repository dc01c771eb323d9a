"""The script of docs/cpu.md on a program that writes records instead of training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atbench.interval import accuracy_figures
from scripts import cpu_table, table_runs


class Program:
    """Stands in for `atbench`: notes its words and leaves the files of a run, as far as `killed` lets it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.killed: str | None = None

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        words = command[3:]
        self.calls.append(words)
        key, _, path = words[1].rpartition("=")
        run = Path(path) / "run" if key == "runs" else Path(path)
        if words[0] == self.killed:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run / "checkpoints" / "last.pt").touch()
            return subprocess.CompletedProcess(command, 130, "", "stopped")
        if words[0] == "train":
            for name, right in (("last", 3950), ("best", 4000)):
                put(run / "evaluation" / f"{name}.json", right, 5000)
            (run / "status.json").write_text(json.dumps({"state": "done", "train_seconds": 45.2}))
        else:
            put(run / "evaluation" / "auto-n500" / "last.json", 404, 500)
        return subprocess.CompletedProcess(command, 0, "", "")


def put(path: Path, right: int, n: int) -> None:
    """A record: `right` under PGD-20, the others by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "clean": accuracy_figures(n, n),
        "steps": [{"k": 1, **accuracy_figures(n - 1, n)}, {"k": 20, **accuracy_figures(right, n)}],
        "attacks": [{"name": "fgsm", "alone": accuracy_figures(n // 2, n)}],
        "robust": accuracy_figures(right - 20, n),
        "threat": {"norm": "linf"},
    }
    path.write_text(json.dumps(record))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    document = tmp_path / "cpu.md"
    document.write_text(f"# Kept\n\n{table_runs.BEGIN}\nold\n{table_runs.END}\nafter\n")
    program = Program()
    monkeypatch.setattr(table_runs.subprocess, "run", program)
    monkeypatch.setattr(cpu_table, "DOCUMENT", document)
    return program


def run(tmp_path: Path, *words: str) -> str:
    cpu_table.main(["--runs", str(tmp_path / "runs"), "--data-dir", "images", *words])
    return (tmp_path / "cpu.md").read_text()


def test_selected_rows_are_trained_attacked_and_written(tmp_path: Path, program: Program) -> None:
    text = run(tmp_path, "--methods", "pgd_at,free_at,collapse")
    first, second = (call for call in program.calls if "method=pgd_at" in call or call[1].endswith("runs/pgd_at/run"))
    assert {"train", "experiment=cpu", "seed=0", "data_dir=images", "eval.limit=5000"} < {*first}
    assert {"eval", "eval=auto", "eval.limit=500", "eval.checkpoints=[last]"} < {*second}
    assert ["train.optimizer.lr=0.05" in call for call in program.calls if "method=free_at" in call] == [True]
    assert sum("experiment=cpu_collapse" in call for call in program.calls) == 1 and len(program.calls) == 6
    row = next(line for line in text.splitlines() if line.startswith("| `pgd_at`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`pgd_at`", "origin", "linf", "100.0 [99.9, 100.0]", "50.0 [48.6, 51.4]", "79.0 [77.8, 80.1]", "80.0",
        "80.8 → 76.8 [72.9, 80.3]", "45",
    ]  # fmt: skip
    assert "| one step from the image | linf |" in text and "`trades`" not in text
    assert text.startswith("# Kept\n") and text.endswith("after\n") and "old" not in text
    assert "`free_at` with `train.optimizer.lr=0.05`: at rate" in text


def test_what_is_done_is_left_and_what_was_stopped_goes_on(tmp_path: Path, program: Program) -> None:
    program.killed = "train"
    assert "`trades`" not in run(tmp_path, "--methods", "trades")
    assert "stopped" in (tmp_path / "runs" / "trades" / "log.txt").read_text()
    program.killed = "eval"
    assert "`trades`" not in run(tmp_path, "--methods", "trades")
    assert program.calls[1][1] == f"resume={tmp_path}/runs/trades/run" and program.calls[2][0] == "eval"
    program.killed = None
    assert "`trades`" in run(tmp_path, "--methods", "trades")
    assert [call[0] for call in program.calls[3:]] == ["eval"], "trained once"
    assert "`trades`" in run(tmp_path, "--methods", "trades") and "`trades`" in run(tmp_path, "--write")
    assert len(program.calls) == 4


def test_an_unknown_method_is_refused(tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--methods", "pgd_at,traeds")
    assert "there is no traeds" in capsys.readouterr().err and not program.calls
