"""Shell completion: verbs are ours, everything behind `train` and `eval` is Hydra's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atbench.cli.main import main
from tests.support.stub import Stub

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("atbench tr", ["train"], ["list"]),
        ("atbench list me", ["methods"], ["models"]),
        ("atbench train method=t", ["method=trades"], ["method=pgd_at"]),
        ("atbench train attack.st", ["attack.steps=", "attack.start="], ["attack.eps="]),
        ("atbench eval runs/x eval=s", ["eval=smoke", "eval=standard"], []),
    ],
)
def test_completion(
    typed: str,
    offered: list[str],
    not_offered: list[str],
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    assert main(["-sc", "query=bash"]) == 0
    words = capsys.readouterr().out.split()
    assert set(offered) <= set(words) and not set(not_offered) & set(words)


def test_a_broken_line_completes_to_nothing(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "atbench train method=nope attack.")
    main(["-sc", "query=bash"])
    assert capfd.readouterr().err == ""


def test_completion_in_a_real_bash(here: Path) -> None:
    (here / "atbench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m atbench "$@"\n')
    (here / "atbench").chmod(0o755)
    script = """
        eval "$(atbench train -sc install=bash)"
        COMP_LINE="atbench train method=yo"; COMP_WORDS=(atbench train method=yo)
        COMP_CWORD=2; COMP_POINT=${#COMP_LINE}
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    """
    settings = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", script], env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["method=yopo"], done.stderr
