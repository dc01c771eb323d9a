"""The scripts of docs/cpu.md on a program that writes records instead of training."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atbench.interval import accuracy_figures
from scripts import collapse_table, cpu_table, table_runs

METRICS = (
    {"event": "watch", "step": 100, "highest": 0.4, "pgd": 0.4, "fgsm": 0.5},
    {"event": "epoch", "epoch": 1},
    {"event": "watch", "step": 200, "highest": 0.5, "pgd": 0.02, "fgsm": 0.8, "collapse": "warn"},
    {"event": "watch", "step": 300, "highest": 0.5, "pgd": 0.01, "fgsm": 0.9},
)


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
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in METRICS))
        else:
            put(run / "evaluation" / "auto-n500" / "last.json", 404, 500, 50 if run.parent.name == "free_at" else 20)
        return subprocess.CompletedProcess(command, 0, "", "")


def put(path: Path, right: int, n: int, lost: int = 20) -> None:
    """A record: `right` under PGD-20, `lost` of them under AutoAttack, the others by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "clean": accuracy_figures(n, n),
        "steps": [{"k": 1, **accuracy_figures(n - 1, n)}, {"k": 20, **accuracy_figures(right, n)}],
        "attacks": [
            {"name": "fgsm", "alone": accuracy_figures(n // 2, n), "after": accuracy_figures(right - 10, n)},
            {"name": "square", "after": accuracy_figures(right - lost, n)},
        ],
        "robust": accuracy_figures(right - lost, n),
        "threat": {"norm": "linf"},
    }
    path.write_text(json.dumps(record))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    document = tmp_path / "cpu.md"
    first, second = (f"{begin}\nold\n{table_runs.END}\n" for begin in (table_runs.BEGIN, collapse_table.BEGIN))
    document.write_text(f"# Kept\n\n{first}between\n{second}after\n")
    program = Program()
    monkeypatch.setattr(table_runs.subprocess, "run", program)
    for script in (cpu_table, collapse_table):
        monkeypatch.setattr(script, "DOCUMENT", document)
    (tmp_path / "methods.md").write_text(f"{cpu_table.GAPS}\nold\n{table_runs.END}\n")
    monkeypatch.setattr(cpu_table, "GAPS_DOCUMENT", tmp_path / "methods.md")
    return program


def run(tmp_path: Path, *words: str) -> str:
    cpu_table.main(["--runs", str(tmp_path / "runs"), "--data-dir", "images", *words])
    return (tmp_path / "cpu.md").read_text()


def test_selected_rows_are_trained_attacked_and_written(tmp_path: Path, program: Program) -> None:
    text = run(tmp_path, "--methods", "pgd_at,free_at")
    first, second = (call for call in program.calls if "method=pgd_at" in call or call[1].endswith("runs/pgd_at/run"))
    assert {"train", "experiment=cpu", "seed=0", "data_dir=images", "eval.limit=5000"} < {*first}
    assert {"eval", "eval=auto", "eval.limit=500", "eval.checkpoints=[last]"} < {*second}
    assert len(program.calls) == 4
    row = next(line for line in text.splitlines() if line.startswith("| `pgd_at`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`pgd_at`", "origin", "linf", "100.0 [99.9, 100.0]", "50.0 [48.6, 51.4]", "79.0 [77.8, 80.1]", "80.0",
        "80.8 → 76.8 [72.9, 80.3]", "45",
    ]  # fmt: skip
    assert "`trades`" not in text and text.startswith("# Kept\n")
    assert text.endswith(f"between\n{collapse_table.BEGIN}\nold\n{table_runs.END}\nafter\n"), (
        "the other section is kept"
    )
    assert "`free_at` with `train.optimizer.lr=0.05`: at rate" in text


def test_what_autoattack_takes_from_pgd_is_listed_from_ten_points_on(tmp_path: Path, program: Program) -> None:
    run(tmp_path, "--methods", "pgd_at,free_at")
    rows = [line for line in (tmp_path / "methods.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == ["| `free_at` | efficient | 80.8 | 78.8 | 70.8 [66.7, 74.6] | 10.0 |"]


def test_rows_whose_runs_are_not_there_stay_in_both_tables(tmp_path: Path, program: Program) -> None:
    run(tmp_path, "--methods", "pgd_at,free_at")
    before = [(tmp_path / name).read_text() for name in ("cpu.md", "methods.md")]
    shutil.rmtree(tmp_path / "runs")
    assert "`trades`" in run(tmp_path, "--methods", "trades")
    run(tmp_path, "--methods", "trades")
    after = [(tmp_path / name).read_text() for name in ("cpu.md", "methods.md")]
    for old, new in zip(before, after, strict=True):
        assert {line for line in old.splitlines() if "free_at" in line or "pgd_at" in line} <= {*new.splitlines()}


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


def test_the_collapse_table_has_two_seeds_and_the_step_that_the_watch_named(tmp_path: Path, program: Program) -> None:
    words = ["--runs", str(tmp_path / "runs"), "--data-dir", "images", "--methods", "fgsm_at"]
    collapse_table.main(words)
    assert [call[0] for call in program.calls] == ["train", "train"]
    for seed, call in enumerate(program.calls):
        assert {"experiment=cpu_collapse", "method=fgsm_at", "method.clean=0", f"seed={seed}"} < {*call}
    text = (tmp_path / "cpu.md").read_text()
    rows = [line for line in text.splitlines() if "fgsm_at" in line]
    assert [row.split(" | ")[1] for row in rows] == ["0", "1"]
    assert all("| 79.0 [77.8, 80.1] | 80.0 | 200 (50 → 2) | 45 |" in row for row in rows)
    assert text.startswith(f"# Kept\n\n{table_runs.BEGIN}\nold\n"), "the other section is kept"
    collapse_table.main(words)
    assert len(program.calls) == 2, "trained once"


def test_an_unknown_method_is_refused(tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--methods", "pgd_at,traeds")
    assert "there is no traeds" in capsys.readouterr().err and not program.calls
