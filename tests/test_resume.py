"""The way back into a run: what is compared with what it wrote down, what may be said again, what is finished."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import yaml

from atbench import run
from atbench.cli import main
from atbench.environment import checksum, compared
from atbench.errors import ConfigError, DataError
from atbench.reporting import report
from atbench.training import Trainer, checkpoint
from tests.test_run import QUICK, read

WORDS = ("train", *QUICK, "method=standard", "attack.eps=51/255")


def only(folder: Path) -> Path:
    (found,) = [path for path in (folder / "runs").iterdir() if path.name != "sweeps"]
    return found


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped in its first epoch, and with the weights that it began from."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert main([*WORDS, "name=start", "train.minutes=1e-5"]) == 75
        shutil.copy(only(folder) / "checkpoints" / "last.pt", folder / "start.pt")
        shutil.rmtree(folder / "runs")
        assert main([*WORDS, "weights=start.pt", "train.minutes=1e-5"]) == 75
    return folder


@pytest.fixture
def begun(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run; the current folder is the one around `runs`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    enter(tmp_path, monkeypatch)
    return only(tmp_path).relative_to(tmp_path)


@pytest.fixture
def unspent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training and evaluation are left out: what is called of them, by name."""
    calls: list[str] = []
    monkeypatch.setattr(Trainer, "fit", lambda self: calls.append("fit"))
    monkeypatch.setattr(run.Run, "evaluate", lambda self, names: calls.append("evaluate") or [])
    monkeypatch.setattr(run.Run, "finish", lambda self, trainer, records: calls.append("finish"))
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


# What was said.


def test_the_words_of_the_run_may_be_said_again(begun: Path, unspent: list[str]) -> None:
    """Resolved is compared with resolved, and a group by its name."""
    again = ["attack.eps=0.2", "attack.eps=51/255", "method=standard", "train.optimizer.lr=1/20", "recipe=common"]
    assert main([*WORDS, f"resume={begun}", *again, "weights=start.pt", "train.minutes=1/2"]) == 0
    assert unspent == ["fit", "evaluate", "finish"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("attack.eps=8/255", "attack.eps: 8/255 — the run has 0.2"),
        ("method=trades", "method: trades — the run has standard"),
        ("recipe=adam", "recipe: adam — the run has common"),
        ("+method.note=1", "method.note: 1 — the run has None"),
        ("~dataset.threat.l2", "dataset.threat.l2: ~dataset.threat.l2 — the run has another"),
        ("experiment=mnist_pgd_at", "experiment: mnist_pgd_at — the run has another"),
    ],
)
def test_other_words_are_refused(
    word: str, said: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(begun)
    assert main(["train", f"resume={begun}", word]) == 2
    assert said in capsys.readouterr().err and unspent == [] and contents(begun) == before


def test_what_is_free_takes_the_place_of_what_was(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run.config, "check", lambda cfg: seen.append(cfg) or (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["train", f"resume={begun}", "logger=none", "train.minutes=1/2", "train.checkpoint.steps=7"]) == 130
    assert seen[0].train.minutes == 0.5 and seen[0].train.checkpoint.steps == 7
    assert "project" not in seen[0].logger, "replaced, not merged into"


# What was written down.


@pytest.mark.parametrize(
    ("key", "value", "code", "said"),
    [
        ("data_sha256", "0" * 64, 3, "dataset: "),
        ("parameters", 7, 3, "parameters: "),
        ("splits", {"train": 1}, 3, "splits: "),
        ("seed", 5, 3, "seed: 0 — the run began with another: 5"),
        ("pool_sha256", "0" * 64, 3, "train.pool.path: "),
    ],
)
def test_facts_that_make_another_run_are_refused(
    key: str, value: Any, code: int, said: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "environment.json"
    path.write_text(json.dumps({**read(path), key: value}))
    before = contents(begun)
    assert main(["train", f"resume={begun}"]) == code
    assert said in capsys.readouterr().err and unspent == [] and contents(begun) == before


def test_another_number_of_processes_is_refused(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint.read(begun / "checkpoints" / "last.pt")
    checkpoint.save(begun / "checkpoints" / "last.pt", {**state, "world": 2})
    assert main(["train", f"resume={begun}"]) == 2
    assert "1 processes — the run has 2; start 2: torchrun --nproc-per-node=2" in capsys.readouterr().err
    assert unspent == []


def test_what_costs_the_last_bits_is_said_and_kept(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "environment.json"
    then = {**read(path), "threads": 9, "packages": {**read(path)["packages"], "torch": "2.0"}}
    path.write_text(json.dumps(then))
    assert main(["train", f"resume={begun}"]) == 0 and unspent
    said = " ".join(capsys.readouterr().err.split())
    assert "not exact" in said and "threads 1 (was 9)" in said and "'torch': '2.0'" in said
    (entry,) = read(path)["resumed"]
    assert entry["threads"] == 1 and entry["packages"]["torch"] != "2.0" and "device" not in entry
    path.unlink()
    assert main(["train", f"resume={begun}"]) == 0
    assert "environment.json is missing" in capsys.readouterr().err


def test_the_file_of_further_images_is_the_one_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", image=images)
    pool = ("method=rst", "train.pool.path=more.npz", "train.pool.labelled=null")
    assert main(["train", *QUICK, *pool, "train.minutes=1e-5"]) == 75
    folder = only(tmp_path)
    np.savez(tmp_path / "more.npz", image=255 - images)
    for words in ([], ["data_dir=elsewhere"]):
        assert main(["train", f"resume={folder}", "train.minutes=10", *words]) == 3
        assert "train.pool.path: " in capsys.readouterr().err


def test_starting_weights_count_until_there_is_a_checkpoint(
    begun: Path, unspent: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(run.assemble, "start_from", lambda model, path: started.append(path))
    assert main(["train", f"resume={begun}"]) == 0 and not started
    shutil.rmtree(begun / "checkpoints")  # killed before the first one
    assert main(["train", f"resume={begun}"]) == 0 and started == [Path("start.pt")]
    checkpoint.save(Path("start.pt"), {"model": {}})
    assert main(["train", f"resume={begun}"]) == 3
    assert "weights: " in capsys.readouterr().err


def test_facts_are_compared_where_they_were_kept() -> None:
    facts = {"seed": 0, "parameters": 1, "splits": {}, "data_sha256": "a", "pool_sha256": None, "processes": 1}
    assert compared({"seed": 0}, facts, begun=True) == [], "an older version kept fewer"
    with pytest.raises(ConfigError, match="1 processes — the run has 4"):
        compared({**facts, "processes": 4}, facts, begun=True)
    with pytest.raises(DataError, match=r"train\.pool\.path: None"):
        compared({**facts, "pool_sha256": "b"}, facts, begun=True)


def test_a_checksum_is_of_a_file_or_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("one")
    first = checksum(tmp_path / "folder")
    (tmp_path / "folder" / "b").write_text("")
    assert checksum(tmp_path / "folder") != first
    assert checksum(tmp_path / "folder" / "a") != checksum(tmp_path / "folder" / "b")
    assert checksum(None) is checksum(tmp_path / "absent") is None


# What is damaged.


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
    assert "last.pt — is gone" in capsys.readouterr().err and unspent == []
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
def test_a_signal_ends_the_evaluation_at_once_and_only_that_is_done_again(
    when: str, sent: signal.Signals, code: int, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, fitted, evaluate, fit = Path.cwd(), [0], run.Run.evaluate, Trainer.fit

    def stopped(self: run.Run, names: list[str]) -> list[dict[str, Any]]:
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
        monkeypatch.setattr(run.Run, "evaluate", stopped)
    assert main(["train", f"resume={begun}", "train.minutes=10"]) == code
    status = read(begun / "status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    monkeypatch.undo()
    enter(home, monkeypatch)
    monkeypatch.setattr(Trainer, "_one_batch", lambda self: fitted.append(1))
    assert main(["train", f"resume={begun}", "train.minutes=10"]) == 0 and fitted == [0]
    assert (begun / "report.html").is_file() and read(begun / "status.json")["state"] == "done"


def test_a_run_that_was_killed_before_its_report_gets_one_and_a_finished_one_says_so(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: Path) -> None:
        frozen.append((folder / "status.json").read_bytes())
        raise Killed

    frozen: list[bytes] = []
    write = report.write
    monkeypatch.setattr(report, "write", killed)
    with pytest.raises(Killed):
        main(["train", f"resume={begun}", "train.minutes=10"])
    (begun / "status.json").write_bytes(frozen[0])  # as kill -9 leaves it
    monkeypatch.setattr(report, "write", write)
    assert main(["train", f"resume={begun}", "train.minutes=10"]) == 0
    assert (begun / "report.html").is_file()
    before = contents(begun)
    capsys.readouterr()
    assert main(["train", f"resume={begun}"]) == 0
    assert f"{begun} is done" in capsys.readouterr().err and contents(begun) == before
    assert main(["train", f"resume={begun}", "train.epochs=7"]) == 2
