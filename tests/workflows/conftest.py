"""A run that is trained once, and copies of it to go back into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atbench.cli.main import main
from atbench.training import Trainer
from atbench.workflows.train import Run
from tests.support.runs import WORDS, enter, only


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped in its first epoch, and with the weights that it began from."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert main([*WORDS, "name=start", "train.time_limit=1e-5"]) == 75
        shutil.copy(only(folder) / "checkpoints" / "last.pt", folder / "start.pt")
        shutil.rmtree(folder / "runs")
        assert main([*WORDS, "weights=start.pt", "train.time_limit=1e-5"]) == 75
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
    monkeypatch.setattr(Run, "evaluate", lambda self, names: calls.append("evaluate") or [])
    monkeypatch.setattr(Run, "write_report", lambda self, trainer, records: calls.append("finish"))
    return calls
