"""metrics.jsonl is exact; the W&B mirror never costs a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atbench.errors import ConfigError, DataError
from atbench.reporting import MetricsLog, truncate_log, wandb_logger
from tests.support.outcomes import STANDARD
from tests.support.wandb_stub import WANDB, Run, fake_wandb, row


@pytest.fixture(autouse=True)
def unbroken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_logger, "_broken", False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_rows_and_positions_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = MetricsLog(tmp_path, None, {}, "n", None)
    marks = [tracker.position()]
    for epoch in (1, 2, 3):
        tracker.log(row(epoch, note="ε"))
        assert json.loads(path.read_text().splitlines()[-1]) == row(epoch, note="ε")  # there before the next call
        marks.append(tracker.position())
    tracker.close()
    whole = path.read_bytes()
    for mark in reversed(marks):
        truncate_log(path, mark)
        assert path.read_bytes() == whole[:mark]
    assert marks[-1] == len(whole)


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    tracker = MetricsLog(tmp_path, None, {}, "n", None)
    tracker.log(row(1))
    kept = tracker.position()
    tracker.log(row(2, lost=True))
    tracker.close()
    (tmp_path / "metrics.jsonl").open("a").write('{"cut')
    truncate_log(tmp_path / "metrics.jsonl", kept)
    tracker = MetricsLog(tmp_path, None, {}, "n", None)
    assert tracker.position() == kept
    tracker.log(row(2))
    tracker.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()] == [row(1), row(2)]


def test_truncation_refuses_a_file_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    for offset in (3, 100):
        with pytest.raises(DataError):
            truncate_log(path, offset)
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    truncate_log(tmp_path / "none.jsonl", 0)


def test_not_a_number_is_null(tmp_path: Path) -> None:
    tracker = MetricsLog(tmp_path, None, {}, "n", None)
    tracker.log({"step": 1, "loss": float("nan"), "all": [float("inf"), 1.0]})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "all": [null, 1.0]}\n'


@pytest.mark.parametrize("logger", [None, {}, {"about": {"name": "none"}}, {**WANDB, "mode": "disabled"}])
def test_without_a_mirror_wandb_is_not_imported(tmp_path: Path, logger: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from atbench.reporting import MetricsLog\n"
        f"t = MetricsLog(Path({str(tmp_path)!r}), {logger!r}, {{}}, 'n', None); t.log({{'step': 1}}); t.close(0)\n"
        "sys.exit(any(name in sys.modules for name in ('wandb', 'torch', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failing_mirror_warns_once_and_harms_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    fake_wandb(monkeypatch, Run(fails=("log",)))
    tracker = MetricsLog(tmp_path, WANDB, {}, "n", None)
    for epoch in (1, 2, 3):
        tracker.log(row(epoch))
    tracker.summary([])
    tracker.close(0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "ConnectionResetError: service died" in warnings[0]
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()  # off for the process: says nothing, starts nothing
    assert capsys.readouterr().err == ""


def test_the_summary_has_worst_case_attacks_and_flags(tmp_path: Path, monkeypatch, make_run) -> None:
    run = Run()
    fake_wandb(monkeypatch, run, logged_in=True)
    check = {"name": "gradients", "value": 0.4, "threshold": 0.01, "verdict": "flag", "sentence": "40 % have none."}
    audit = {"trusted": False, "flags": ["gradients"], "sentence": "1 flag.", "checks": [check]}
    evaluated = {"attacks": STANDARD, "sequential": True, "norms": ("l2",), "audit": audit}
    record = json.loads((make_run(evaluated=evaluated) / "evaluation" / "best.json").read_text())
    tracker = MetricsLog(tmp_path, WANDB, {}, "n", None)
    tracker.summary([record])
    tracker.close()
    assert run.summary["best/robust"] == record["robust"]["accuracy"] == 0.5
    assert run.summary["best/robust_is"] == "the worst case per example of PGD-50, AutoAttack (standard)"
    assert run.summary["best/after/square"] == 0.5 and "best/alone/square" not in run.summary
    assert run.summary["best/norm/l2"] == record["norms"]["l2"]["accuracy"]
    assert (run.summary["best/audit/trusted"], run.summary["best/audit/flags"]) == (False, "gradients")
    (_, logged), columns = run.logged[-1], 8
    rows = logged["evaluation"]["data"]
    assert len(rows) == 4 + 4 + 4 + 1 and all(len(row) == columns for row in rows)
    assert ["best", "after apgd_ce", 0.2, None, 60, *record["attacks"][0]["after"].values()] in rows


def test_a_start_that_fails_in_every_mode_harms_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    fake_wandb(monkeypatch, Run(), fails=("online", "offline"), logged_in=True)
    tracker = MetricsLog(tmp_path, WANDB, {}, "n", None)
    tracker.log(row(1))
    tracker.close(0)
    assert "did not start and is off" in capsys.readouterr().err


def test_a_failing_online_start_becomes_offline(tmp_path: Path, monkeypatch, capsys) -> None:
    run = Run()
    given = fake_wandb(monkeypatch, run, fails=("online",), logged_in=True)
    tracker = MetricsLog(tmp_path, WANDB, {"a": 1}, "n", "sweep7")
    tracker.log(row(2))
    tracker.close(3)
    assert given["mode"] == "offline" and given["group"] == "sweep7" and given["dir"] == str(tmp_path)
    assert run.logged == [(20, {"epoch": 2, "val/clean": 0.9, "val/pgd": 0.5})], "sizes and positions are no curves"
    assert run.finished == [3]
    assert "could not go online (RuntimeError: no way)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "variable", "logged_in", "expected"),
    [
        (None, None, True, "online (logged in)"),
        (None, None, False, "offline (not logged in)"),
        (None, "offline", True, "offline (WANDB_MODE=offline)"),
        ("online", "offline", True, "online (logger.mode=online)"),
        ("online", None, False, "offline (logger.mode=online, but not logged in)"),
        (None, "dryrun", True, "offline (WANDB_MODE=dryrun is not a mode)"),
    ],
)
def test_the_mode_is_resolved_and_said(
    tmp_path: Path, monkeypatch, capsys, mode, variable, logged_in, expected
) -> None:
    fake_wandb(monkeypatch, Run(), logged_in=logged_in)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    MetricsLog(tmp_path, {**WANDB, "mode": mode}, {}, "n", None).close()
    err = capsys.readouterr().err
    assert err.startswith(f"W&B: {expected}") and err.count("\n") == 1


def test_the_id_that_is_kept_is_the_one_that_wandb_uses(tmp_path: Path, monkeypatch) -> None:
    """The agent of a W&B sweep has ids of its own; a resumed run asks for what is kept."""
    run = Run()
    given = fake_wandb(monkeypatch, run, logged_in=True)
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()
    assert given["id"] != run.id and (tmp_path / "wandb" / "id").read_text() == run.id
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()
    assert given["id"] == run.id
    (tmp_path / "wandb" / "id").write_text("\n")
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()
    assert given["id"], "an empty id is none"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("WANDB_MODE", "", None), ("WANDB_RUN_ID", "", None), ("WANDB_MODE", "nonsense", "offline")],
)
def test_wandb_does_not_see_variables_that_it_stops_at(
    tmp_path: Path, monkeypatch, name: str, value: str, expected: str | None
) -> None:
    fake_wandb(monkeypatch, Run())
    monkeypatch.setenv(name, value)
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()
    assert os.environ.get(name) == expected


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.mode: onlin"):
        MetricsLog(tmp_path, {**WANDB, "mode": "onlin"}, {}, "n", None)


def test_a_server_that_never_answers_costs_seconds(tmp_path: Path, monkeypatch, capsys) -> None:
    fake_wandb(monkeypatch, Run(), logged_in=True)
    monkeypatch.setattr(wandb_logger, "_REACH", 0.1)
    monkeypatch.setattr(wandb_logger.socket, "create_connection", lambda *_, **__: __import__("time").sleep(30))
    MetricsLog(tmp_path, WANDB, {}, "n", None).close()
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.slow
def test_offline_really_writes_and_resumes_the_same_run(tmp_path: Path, make_run) -> None:
    """The real wandb, in a process of its own with no terminal and no login: no prompt, no draw from a seeded
    generator, and a variable that is empty counts as none."""
    record = json.loads((make_run() / "evaluation" / "best.json").read_text())
    (tmp_path / "new" / "pictures").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "new" / "pictures" / "best.png")
    code = (
        "import json, random, sys, numpy as np; from pathlib import Path; from atbench.reporting import MetricsLog\n"
        "random.seed(0); np.random.seed(0); before = random.getstate(), np.random.get_state()[1].tolist()\n"
        "folder = Path(sys.argv[1]); record = json.loads(sys.argv[2])\n"
        "for name in ('a', 'b'):\n"
        "    t = MetricsLog(folder, {'project': 'test', 'mode': 'offline'}, {'x': {'y': 1}}, name, 'sweep')\n"
        "    t.log({'step': 1, 'val': {'pgd': 0.5}}); t.summary([record]); t.close(0)\n"
        "assert before == (random.getstate(), np.random.get_state()[1].tolist())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new"), json.dumps(record)]
    empty = dict.fromkeys(("WANDB_MODE", "WANDB_RUN_ID", "WANDB_BASE_URL", "WANDB_RESUME", "WANDB_API_KEY"), "")
    done = subprocess.run(
        command, env={**os.environ, **empty}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    identity = (tmp_path / "new" / "wandb" / "id").read_text()
    files = list((tmp_path / "new" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files and all(b"val/pgd" in file.read_bytes() for file in files)
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == ["W&B: offline (logger.mode=offline)"] * 2
    assert list((tmp_path / "new" / "wandb").glob("offline-run-*/files/media/images/pictures/best*.png"))
    assert list((tmp_path / "new" / "wandb").glob("offline-run-*/files/media/table/evaluation*.json"))
    assert done.stdout == ""
