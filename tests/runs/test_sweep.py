"""The folder of a sweep is its own, and a sweep goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from atbench.cli.main import main
from atbench.runs import sweep
from atbench.workflows.train import Run
from tests.support.runs import QUICK, read
from tests.support.stub import Stub


def started(folder: Path) -> list[Path]:
    """The callback, for a sweep whose name the clock gave; returns what it made."""
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "overrides": {"hydra": []}}})
    sweep.reset()
    sweep.SweepFolder().on_multirun_start(config)
    assert config.hydra.overrides.hydra in ([], [f"hydra.sweep.dir={config.hydra.sweep.dir}"])
    return [Path(config.hydra.sweep.dir)]


def test_two_sweeps_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    (first,) = started(tmp_path / "runs" / "sweeps" / "now")
    (second,) = started(tmp_path / "runs" / "sweeps" / "now")
    assert first.is_dir() and second.is_dir() and second.name == "now-2"
    (first / sweep.RECORD).touch()
    (second / sweep.RECORD).touch()
    sweep.remove_refused_sweep()  # the second is refused
    assert (first / sweep.RECORD).exists() and not second.exists()


def test_a_refused_sweep_takes_no_folder_of_another(tmp_path: Path) -> None:
    (first,) = started(tmp_path / "runs" / "sweeps" / "now")
    other = first.parent / "other"
    other.mkdir()
    sweep.remove_refused_sweep()
    assert other.is_dir() and not first.exists()


def test_a_refused_line_leaves_the_record_of_the_sweep_that_it_named(stub: Stub, here: Path) -> None:
    assert main(["train", "-m", "seed=0,1", "hydra.sweep.dir=mine"]) == 0
    record = (here / "mine" / sweep.RECORD).read_text()
    assert main(["train", "-m", "method=tradse", "hydra.sweep.dir=mine"]) == 2
    assert (here / "mine" / sweep.RECORD).read_text() == record


@pytest.mark.slow
def test_a_sweep_says_its_words_again(stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "seed=0,1", "attack.eps=8/255", "hydra.sweep.dir=mine"]) == 0
    assert main(["train", "-m", "resume=mine", "device=cpu"]) == 0
    assert [(cfg.seed, cfg.attack.eps) for cfg in stub.configs] == 2 * [(0, "8/255"), (1, "8/255")]
    assert stub.configs[-1].device == "cpu" and stub.configs[-1].resume is None
    (here / "empty").mkdir()
    assert main(["train", "-m", "resume=empty"]) == 3
    (here / "mine" / sweep.RECORD).write_text("a: [")
    assert main(["train", "-m", "resume=mine"]) == 3
    err = capsys.readouterr().err
    assert "empty — is not the folder of a sweep" in err and "multirun.yaml — is damaged" in err


def test_a_job_says_its_number_and_what_differs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And, after a job that was trained and not passed over, how long the rest may take."""
    monkeypatch.setenv("ATBENCH_JOBS", "")  # restored afterwards
    task = ["method=pgd_at,trades", "train.epochs=3", "seed=range(3)"]
    basic = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    node: dict[str, Any] = {
        "sweep": {"dir": "x"},
        "overrides": {"hydra": [], "task": task},
        "sweeper": {"_target_": basic},
    }
    sweep.reset()
    sweep.SweepFolder().on_multirun_start(OmegaConf.create({"hydra": node}))
    first = ["method=pgd_at", "train.epochs=3", "seed=0"]
    assert sweep.job_line(0, first) == "job 1/6  method=pgd_at train.epochs=3 seed=0"
    assert sweep.job_line(2, [*first[:2], "seed=2"]) == "job 3/6  seed=2"
    later = ["method=trades", "train.epochs=3", "seed=1"]
    assert sweep.job_line(4, later, [0.1, 100.0, 140.0]) == "job 5/6  method=trades seed=1  about 4 min left"
    node["sweeper"]["_target_"] = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    sweep.SweepFolder().on_multirun_start(OmegaConf.create({"hydra": node}))
    assert sweep.job_line(4, later) == "job 5  method=trades train.epochs=3 seed=1"


@pytest.mark.slow
@pytest.mark.parametrize("word", ["model._target_=atbench.models.CNN", "name=${oc.env:HOME}"])
def test_what_only_the_user_may_say_is_not_taken_from_the_record(
    word: str, stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "seed=0,1", word, "hydra.sweep.dir=mine"]) == 0
    assert main(["train", "-m", "resume=mine"]) == 2
    assert "say it again: atbench train -m resume=mine" in capsys.readouterr().err
    assert main(["train", "-m", "resume=mine", word]) == 0 and len(stub.configs) == 4


@pytest.mark.slow
@pytest.mark.parametrize("again", ["resume", pytest.param("same words", marks=pytest.mark.slow)])
def test_a_sweep_goes_on(again: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job is done, one was interrupted, one was never begun."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["train", "-m", *QUICK, "method=standard", "train.epochs=1", "seed=0,1,2", "hydra.sweep.dir=mine"]
    trained: list[tuple[int, bool]] = []
    fit = Run.fit

    def fitted(self: Run, trainer: Any, state: Any) -> None:
        trained.append((self.cfg.seed, state is not None))
        if len(trained) == 2:
            self.signal.code = 143
        fit(self, trainer, state)

    monkeypatch.setattr(Run, "fit", fitted)
    monkeypatch.setattr(Run, "evaluate", lambda self, names: [])
    monkeypatch.setattr(
        "atbench.workflows.train.report",
        type("report", (), {"write_report": staticmethod(lambda folder, every_format: None)}),
    )
    monkeypatch.setattr("atbench.workflows.train.print_summary", lambda *_: None)
    assert main(words) == 143
    assert trained == [(0, False), (1, False)]
    assert main(["train", "-m", "resume=mine"] if again == "resume" else words) == 0
    assert trained[2:] == [(1, True), (2, False)]
    runs = [path for path in (here / "mine").iterdir() if path.is_dir()]
    assert len(runs) == 3 and all(read(path / "status.json")["exit_code"] == 0 for path in runs)
