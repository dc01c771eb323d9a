"""What `atbench doctor` finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atbench.cli.main import main


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["state"], row["value"]) for row in json.loads(capsys.readouterr().out)}


def test_a_machine_that_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = found(capsys)
    assert {"python", "torch", "hydra-core", "cpu", "runs", "W&B", "digits"} <= set(findings)
    assert findings["W&B"] == ("ok", "disabled (WANDB_MODE=disabled)")
    assert findings["digits"][0] == "ok" and str(here / "runs") in findings["runs"][1]
    assert list(here.iterdir()) == []


def test_a_folder_that_cannot_be_written_breaks_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    assert main(["doctor", "--json", "--runs", "file/runs"]) == 5
    assert found(capsys)["runs"][0] == "broken"
    assert main(["doctor", "--runs", "file/runs"]) == 5
    assert "broken" in capsys.readouterr().out


def test_a_fault_in_one_look_does_not_hide_the_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("atbench.cli.doctor._devices", lambda: 1 / 0)
    assert main(["doctor", "--json"]) == 5
    findings = found(capsys)
    assert findings["devices"][0] == "broken" and "digits" in findings
