"""A rejection in the report, on the terminal and in the mirror; and none of it where none was asked for."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atbench.evaluation import record_files, summarize
from atbench.reporting import print_summary
from atbench.reporting.document import Paragraph, Table
from atbench.reporting.evaluation_report import accuracy_blocks
from atbench.reporting.logged_values import summary_values
from atbench.reporting.rejection_report import rejection_blocks
from atbench.reporting.results import EvaluationRecord, read_evaluation
from tests.support.flat import rejected


def made(folder: Path, **changes: Any) -> EvaluationRecord:
    _, found = rejected(**changes)
    about = {"schema": 3, "checkpoint": "best", "epoch": 1, "split": "test"}
    record_files.save_record(folder, "best", {**about, **summarize(found)}, found.outcomes, {}, {})
    return read_evaluation(folder / "best.json")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    return made(tmp_path_factory.mktemp("rejection"))


def words(entry: dict[str, Any]) -> str:
    return f"{100 * entry['share']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def test_every_share_has_its_row(evaluation: EvaluationRecord) -> None:
    found = evaluation.record["reject"]
    (table,) = [block for block in rejection_blocks([evaluation]) if isinstance(block, Table)]
    rows = [[cell.text for cell in row] for row in table.rows]
    for row, key in zip(rows, ("error", "robust_error", "tpr", "fpr", "adversarial", "accepted"), strict=False):
        assert row[4:] == [words(found[key]), str(found[key]["n"])]
        assert row[2] == (words(found["without"][key]) if "error" in key else "—")
    assert rows[-1][4] == f"{found['auc']:.3f}" and len(rows) == 7
    (said,) = [block.text for block in rejection_blocks([evaluation]) if isinstance(block, Paragraph)]
    assert f"below {found['threshold']:.4f} are rejected" in said and "target 90.0 %" in said
    assert words(found["held_out"]) in said


def test_the_report_has_it_among_the_accuracies(evaluation: EvaluationRecord, tmp_path: Path) -> None:
    def titles(given: EvaluationRecord) -> list[tuple[str, ...]]:
        return [block.columns for block in accuracy_blocks([given]) if isinstance(block, Table)]

    assert any("with rejection" in columns for columns in titles(evaluation))
    assert not any("with rejection" in columns for columns in titles(made(tmp_path, reject=None)))


def test_the_cost_of_wrong_images_is_not_the_sweeps(evaluation: EvaluationRecord) -> None:
    (_, sweep, _) = next(block for block in accuracy_blocks([evaluation]) if isinstance(block, Table)).rows
    (attack,) = evaluation.record["attacks"]
    gradients = evaluation.record["gradient_passes"]
    assert sweep[9].value == gradients - attack["gradients"] - evaluation.record["reject"]["gradients"] > 0


def test_the_terminal_says_it_in_a_line(evaluation: EvaluationRecord) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_summary([dict(evaluation.record)], Path("run"), [], console)
    found = evaluation.record["reject"]
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"reject  best: robust error {words(found['robust_error'])} with rejection" in said
    assert f"{100 * found['without']['robust_error']['share']:.1f} % without" in said and "confident" in said


def test_what_nothing_was_accepted_of_is_a_dash(evaluation: EvaluationRecord) -> None:
    empty = {"share": None, "low": None, "high": None, "n": 0}
    bare = {**evaluation.record["reject"], "error": empty, "robust_error": empty, "auc": None}
    told = replace(evaluation, record={**evaluation.record, "reject": bare})
    (table,) = [block for block in rejection_blocks([told]) if isinstance(block, Table)]
    assert [row[4].text for row in table.rows][:2] == ["—", "—"] and table.rows[-1][4].text == "—"


def test_the_mirror_has_its_values(evaluation: EvaluationRecord) -> None:
    values, found = dict(summary_values(evaluation.record)), evaluation.record["reject"]
    assert values["reject/robust_error"] == found["robust_error"]["share"] and values["reject/auc"] == found["auc"]
    assert (values["reject/tpr"], values["reject/threshold"]) == (found["tpr"]["share"], found["threshold"])
    assert values["alone/confident"] == evaluation.record["attacks"][0]["alone"]["accuracy"]
