"""Where the figures of a later evaluation go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atbench.config.compose import compose
from atbench.workflows import evaluate

RECORDS = [{"checkpoint": "best"}]


@pytest.mark.parametrize(
    ("words", "project"), [([], "of the run"), (["logger=none"], None), (["logger=wandb"], "atbench")]
)
def test_figures_go_where_the_training_was_logged_or_where_the_line_says(
    words: list[str], project: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "log_evaluation", lambda folder, logger, *rest: seen.append(logger))
    saved = {"logger": {"project": "of the run"}}
    evaluate._log(compose("eval", ["target=run", *words]), saved, tmp_path, RECORDS)
    assert [logger.get("project") for logger in seen] == [project]


def test_a_folder_does_not_send_what_this_machine_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "log_evaluation", lambda *words: pytest.fail("was sent"))
    evaluate._log(compose("eval", ["target=run"]), {"logger": {"project": "${oc.env:HOME}"}}, tmp_path, RECORDS)
    assert "logger.project: ${oc.env:HOME} is not looked up" in " ".join(capsys.readouterr().err.split())
