"""A finished run goes on under more epochs: from its weights, on the longer schedule, marked as not one schedule."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from atbench.cli.main import main
from atbench.errors import ConfigError
from atbench.reporting.run_folder import read_run
from atbench.runs.run_dir import set_status
from atbench.training import checkpoint
from atbench.workflows import extension
from atbench.workflows.train import Run
from tests.support.runs import WORDS, contents, enter, final, only, read, rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one epoch, finished but for its evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        monkeypatch.setattr(Run, "evaluate", lambda self, names: [])
        words = [word for word in WORDS if not word.startswith("train.epochs")]
        extra = ("train.epochs=1", "train.checkpoint.every=1", "recipe=rn18_c10_default")
        monkeypatch.setattr("atbench.reporting.report.write_report", lambda folder, every_format: None)
        assert main([*words, *extra]) == 0
    return folder


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, in a folder of its own."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr("atbench.reporting.report.write_report", lambda folder, every_format: None)
    return only(tmp_path).relative_to(tmp_path)


def test_a_checkpoint_of_every_epoch_is_evaluated_by_its_name(finished: Path) -> None:
    state = checkpoint.read(finished / "checkpoints" / "epoch_1.pt")
    assert state["epoch"] == 1 and not state.keys() & {"optimizers", "method"}
    assert all((value == final(finished)["model"][key]).all() for key, value in state["model"].items())
    limits = ("eval=smoke", "eval.limit=20", "eval.steps=[1]", "eval.eps_steps=1", "threads=1")
    assert main(["eval", str(finished), "eval.checkpoints=[epoch_1]", *limits]) == 0
    assert read(finished / "evaluation" / "epoch_1.json")["epoch"] == 1
    assert list(read_run(finished).evaluations) == ["epoch_1"]


def test_more_epochs_go_on_where_the_run_ended_and_are_marked(finished: Path) -> None:
    first = rows(finished)
    assert main(["train", f"resume={finished}", "train.epochs=2"]) == 0
    status, config = read(finished / "status.json"), yaml.safe_load((finished / "config.yaml").read_text())
    assert (status["state"], status["epoch"], status["epochs"], status["extended_at"]) == ("done", 2, 2, [1])
    assert config["train"]["epochs"] == config["train"]["schedule"]["epochs"] == 2
    assert rows(finished)[:1] == first and [(row["epoch"], row["epochs"]) for row in rows(finished)] == [(1, 1), (2, 2)]
    assert final(finished)["config"]["train"]["epochs"] == 2
    assert sorted(path.stem for path in (finished / "checkpoints").glob("epoch_*.pt")) == ["epoch_1", "epoch_2"]
    assert read(finished / "evaluation" / "last.json")["extended_at"] == [1]
    assert extension.extended_at(finished, 1) == [], "what was trained before is of one schedule"
    assert "extended after epoch 1: not one schedule" in read_run(finished).status_line
    before = contents(finished)
    assert main(["train", f"resume={finished}", "train.epochs=2"]) == 0
    assert contents(finished) == before, "it is done"
    assert main(["eval", f"verify={finished}"]) == 0


def test_an_extension_that_is_killed_at_once_goes_on(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Run, *rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "fit", killed)
        assert main(["train", f"resume={finished}", "train.epochs=2"]) == 130
    calls: list[str] = []
    monkeypatch.setattr(Run, "fit", lambda self, trainer, state: calls.append(str(state["epoch"])))
    monkeypatch.setattr(Run, "evaluate", lambda self, names: [])
    assert main(["train", f"resume={finished}"]) == 0 and calls == ["1"]
    assert read(finished / "status.json")["extended_at"] == [1]


def test_where_it_cannot_be_it_is_refused_in_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(epochs: int, said: str) -> None:
        before = contents(finished)
        assert main(["train", f"resume={finished}", f"train.epochs={epochs}"]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and contents(finished) == before

    refused(0, "train.epochs: 0 — the run has trained for 1; give more")
    set_status(finished, state="interrupted", exit_code=130)
    refused(2, "train.epochs: 2 — the run has 1 and is not finished; a resumed run keeps its configuration; finish it")
    set_status(finished, state="done", exit_code=0)
    path = finished / "checkpoints" / "last.pt"
    checkpoint.save(path, {**checkpoint.read(path), "over": "patience"})
    refused(2, "train.epochs: 2 — training ended at epoch 1 of 1 (patience)")


def test_schedules_that_count_epochs_count_the_new_ones(tmp_path: Path) -> None:
    by_epoch = {"_target_": "atbench.training.schedules.CosineByEpoch", "epochs": 20}
    config: dict[str, Any] = {
        "train": {"epochs": 20, "schedule": by_epoch, "groups": {"a": {"schedule": {**by_epoch, "epochs": 7}}}}
    }
    changed = extension.extended_config(config, 40)["train"]
    assert (changed["epochs"], changed["schedule"]["epochs"], config["train"]["epochs"]) == (40, 40, 20)
    assert changed["groups"]["a"]["schedule"]["epochs"] == 7, "a number of its own"
    config["train"]["schedule"] = {"_target_": "atbench.training.schedules.InverseTime", "decay": 1.0}
    set_status(tmp_path, state="done", exit_code=0, epoch=20)
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", {"over": None})
    with pytest.raises(ConfigError, match="the schedule's decay is set for the number of all steps"):
        extension.refuse_extension(tmp_path, config, 40)
