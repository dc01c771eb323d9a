"""Damaged run folders, and runs that were ended in their evaluation: one line, or the way on."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml

from atbench.cli.main import main
from atbench.reporting import report
from atbench.training import Trainer, checkpoint
from atbench.workflows.train import Run
from tests.support.runs import contents, enter, read


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(path: Path, change: Any) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


DAMAGES: dict[str, Any] = {
    "config.yaml cut": lambda folder: cut(folder / "config.yaml"),
    "config.yaml no YAML": lambda folder: (folder / "config.yaml").write_text("a: [unclosed\n"),
    "config.yaml no text": lambda folder: (folder / "config.yaml").write_bytes(b"\xff\xfe\x00a"),
    "config.yaml empty": lambda folder: (folder / "config.yaml").write_text(""),
    "config.yaml lacks": lambda folder: edited(folder / "config.yaml", lambda c: c.pop("attack")),
    "config.yaml lacks part": lambda folder: edited(folder / "config.yaml", lambda c: c["train"].pop("optimizer")),
    "config.yaml type": lambda folder: edited(folder / "config.yaml", lambda c: c.update(train=[1, 2])),
    "config.yaml other": lambda folder: edited(folder / "config.yaml", lambda c: c["model"].update(width=8)),
    "status.json": lambda folder: (folder / "status.json").write_text('{"state": "inter'),
    "environment.json": lambda folder: cut(folder / "environment.json"),
    "as_typed.yaml": lambda folder: (folder / "as_typed.yaml").write_text("- 1\n"),
    "lock": lambda folder: (folder / "lock").write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line(name: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGES[name](begun)
    before = contents(begun)
    assert main(["train", f"resume={begun}"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and name.partition(" ")[0] in last and unspent == []
    assert contents(begun) == before


@pytest.mark.parametrize("part", ["optimizers", "best", "config", "method"])
def test_a_checkpoint_without_a_part_is_refused(
    part: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "checkpoints" / "last.pt"
    state = checkpoint.read(path)
    del state[part]
    checkpoint.save(path, state)
    assert main(["train", f"resume={begun}"]) == 3
    assert f"last.pt — lacks its part '{part}'" in capsys.readouterr().err and unspent == []


def test_a_checkpoint_that_does_not_fit_is_refused(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "checkpoints" / "last.pt"
    state = checkpoint.read(path)
    checkpoint.save(path, {**state, "optimizers": {}})
    assert main(["train", f"resume={begun}"]) == 3
    assert "last.pt — does not fit its run ('model')" in capsys.readouterr().err and unspent == []


def test_a_checkpoint_that_is_gone_is_not_trained_over(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (begun / "checkpoints").iterdir():
        path.unlink()
    (begun / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert main(["train", f"resume={begun}"]) == 3
    assert "last.pt — is missing" in capsys.readouterr().err and unspent == []
    assert (begun / "metrics.jsonl").read_text().count("\n") == 2


def test_a_read_only_run_is_refused_before_any_work(
    begun: Path, unspent: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(begun / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    assert main(["train", f"resume={begun}"]) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: run: {begun} — cannot be written (Read-only file system)") and unspent == []


# What is finished.


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("when", ["evaluation", "end of training", "swallowed"])
@pytest.mark.slow
def test_a_signal_ends_the_evaluation_at_once_and_only_that_is_done_again(
    when: str, sent: signal.Signals, code: int, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, fitted, evaluate, fit = Path.cwd(), [0], Run.evaluate, Trainer.fit

    def stopped(self: Run, names: list[str]) -> list[dict[str, Any]]:
        try:
            os.kill(os.getpid(), sent)
        except Exception:
            if when != "swallowed":
                raise
        if when == "evaluation":
            raise AssertionError("went on")
        return evaluate(self, names)

    def last_step(self: Trainer) -> None:
        fit(self)
        os.kill(os.getpid(), sent)

    if when == "end of training":
        monkeypatch.setattr(Trainer, "fit", last_step)
    else:
        monkeypatch.setattr(Run, "evaluate", stopped)
    assert main(["train", f"resume={begun}", "train.time_limit=10"]) == code
    status = read(begun / "status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    monkeypatch.undo()
    enter(home, monkeypatch)
    monkeypatch.setattr(Trainer, "train_batch", lambda self: fitted.append(1))
    assert main(["train", f"resume={begun}", "train.time_limit=10"]) == 0 and fitted == [0]
    assert (begun / "report.html").is_file() and read(begun / "status.json")["state"] == "done"


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_report_gets_one_and_a_finished_one_says_so(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: Path, every_format: bool) -> None:
        frozen.append((folder / "status.json").read_bytes())
        raise Killed

    frozen: list[bytes] = []
    write = report.write_report
    monkeypatch.setattr(report, "write_report", killed)
    with pytest.raises(Killed):
        main(["train", f"resume={begun}", "train.time_limit=10"])
    (begun / "status.json").write_bytes(frozen[0])  # as kill -9 leaves it
    monkeypatch.setattr(report, "write_report", write)
    assert main(["train", f"resume={begun}", "train.time_limit=10"]) == 0
    assert (begun / "report.html").is_file()
    before = contents(begun)
    capsys.readouterr()
    assert main(["train", f"resume={begun}"]) == 0
    assert f"{begun} is done" in capsys.readouterr().err and contents(begun) == before
    assert main(["train", f"resume={begun}", "train.batch_size=7"]) == 2
