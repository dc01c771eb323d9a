"""Lines that the program prints for the user to paste back: quoted for the shell and for Hydra, and what they do."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from atbench.cli.main import main
from atbench.config.argv import shell_line
from atbench.config.overrides import setting
from atbench.errors import Interrupted
from atbench.runs.signals import naming_command
from atbench.workflows.train import Run
from tests.support.runs import WORDS


@pytest.mark.parametrize("path", ["runs/x", "my runs/[1] a,b", "it's", 'a "$HOME" `x`!', "back\\slash\\", "5 €"])
def test_a_path_comes_back_through_the_shell_and_hydra(path: str) -> None:
    program, verb, word = shlex.split(shell_line("train", setting("resume", path)))
    assert (program, verb) == ("atbench", "train")
    assert OverridesParser.create().parse_override(word).value() == path
    assert shlex.split(shell_line("report", path))[2] == path


def test_plain_paths_are_not_quoted() -> None:
    assert shell_line("train", setting("resume", "runs/x-1")) == "atbench train resume=runs/x-1"
    assert shell_line("train", setting("resume", "a b")) == "atbench train \"resume='a b'\""


def test_the_outermost_work_is_what_goes_on() -> None:
    with (
        pytest.raises(Interrupted, match="go on with `atbench train resume=run`") as stop,
        naming_command("atbench train resume=run"),
        naming_command("atbench train resume=run/stages/x"),
    ):
        raise Interrupted(75, "train", "stopped", "the time box is full", "")
    assert stop.value.exit_code == 75
    with pytest.raises(Interrupted) as stop, naming_command("atbench train resume=run"):
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130


@pytest.mark.slow
def test_a_stopped_run_says_how_it_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder stands there from the start, and the end names the report."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    fit = Run.fit

    def stopped(self: Run, trainer: Any, state: Any) -> None:
        self.signal.code = 0 if state else 130
        fit(self, trainer, state)

    monkeypatch.setattr(Run, "fit", stopped)
    assert main([*WORDS, "runs='my runs [1]'", "train.epochs=1"]) == 130
    (folder,) = Path("my runs [1]").iterdir()
    err = capsys.readouterr().err
    assert f"folder  {folder}\n" in err
    line = re.search(r"go on with `(.*)`$", err)
    assert line is not None and shlex.split(line[1]) == ["atbench", "train", f"resume='{folder}'"]
    assert main(shlex.split(line[1])[1:]) == 0
    out = capsys.readouterr().out
    assert f"report  {folder}/report.html\n" in out
    assert f"next    atbench eval '{folder}' eval=auto\n        atbench report '{folder}' OTHER_RUN\n" in out
    assert main(["train", f"resume='{folder}'"]) == 0
    assert f"`atbench report '{folder}'` shows it" in capsys.readouterr().err

    # An evaluation of the run is begun again by the words that were typed.
    monkeypatch.setattr("atbench.workflows.evaluate.evaluate_model", interrupt)
    assert main(["eval", str(folder), "eval.checkpoints=[best]", "eval.limit=20"]) == 130
    said = f"go on with `atbench eval '{folder}' 'eval.checkpoints=[best]' eval.limit=20`"
    assert said in capsys.readouterr().err


def interrupt(*args: Any) -> None:
    """What Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("it goes on")
