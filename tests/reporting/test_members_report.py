"""Transfer between members in the report, on the terminal, in the mirror and against its masks."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from atbench.evaluation import PGDConfig, record_files, summarize
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.members import add_members
from atbench.reporting import print_summary
from atbench.reporting.agreement import record_disagreements
from atbench.reporting.document import Figure, Paragraph, Table
from atbench.reporting.logged_values import attack_rows
from atbench.reporting.members_report import transfer_blocks
from atbench.reporting.results import EvaluationRecord, read_evaluation
from tests.support.flat import EPS, rejected

N = 90
#: Of 80 images that both members classify right, how many each (column) gets wrong that were made on each (row).
WRONG = [[72, 8], [40, 80]]
PERCENT = [["10", "90"], ["50", "0"]]


def transfer(wrong: list[list[int]], right: int = 80) -> tuple[np.ndarray, list[AttackResult]]:
    """Attacks on two members, made up."""
    masks = np.zeros((2, N), bool)
    masks[0, :right], masks[1, :right] = True, True
    masks[1, right:] = True
    attacks = []
    for counts in wrong:
        rows = np.arange(max(counts))
        fooled = rows[:, None] < np.array(counts)
        kept = {"x_adv": np.zeros((len(rows), 1, 5, 5), np.float32), "fooled": fooled}
        tried = torch.from_numpy(masks.all(axis=0))
        name = f"member{len(attacks)}"
        attacks.append(AttackResult(name, "transfer", tried, tried, 0.5, 10, 8, rows=rows, kept=kept))
    return masks, attacks


def made(folder: Path, members: tuple[np.ndarray, list[AttackResult]] | None) -> EvaluationRecord:
    _, found = rejected(reject=None)
    if members:
        add_members(found, PGDConfig("linf", EPS, 0.004, 8), *members)
    about = {"schema": 3, "checkpoint": "best", "epoch": 1, "split": "test"}
    arrays, kept = found.outcomes, found.examples
    record_files.save_record(folder, "best", {**about, **summarize(found)}, arrays, kept, {})
    return read_evaluation(folder / "best.json")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    return made(tmp_path_factory.mktemp("members"), transfer(WRONG))


def blocks(given: EvaluationRecord, kind: type[Any]) -> list[Any]:
    return [block for block in transfer_blocks([given]) if isinstance(block, kind)]


def summary(*records: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(records, Path("run"), [], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_for_each_attacked_member(evaluation: EvaluationRecord) -> None:
    (table,), (said,) = blocks(evaluation, Table), blocks(evaluation, Paragraph)
    assert table.columns == ("checkpoint", "attacked", "member 0", "member 1")
    rows = [[cell.text.partition(".")[0] for cell in row[2:]] for row in table.rows]
    assert rows == PERCENT and [row[1].text for row in table.rows] == ["member 0", "member 1"]
    assert table.rows[1][2].text == "50.0 % [39.3, 60.7]"
    assert said.text.endswith("best: PGD-8 (L∞, ε = 0.02), n = 80.")


def test_without_members_there_is_nothing(tmp_path: Path) -> None:
    bare = made(tmp_path, None)
    assert list(transfer_blocks([bare])) == [] and "members" not in summary({**bare.record})


def test_without_an_image_that_all_have_right_a_sentence_says_so(tmp_path: Path) -> None:
    bare = made(tmp_path, transfer([[0, 0], [0, 0]], right=0))
    assert blocks(bare, Table) == [] and "no image is classified right by all" in blocks(bare, Paragraph)[0].text
    assert "members best: no image" in summary({**bare.record})
    assert record_disagreements(bare) == ()


def test_the_terminal_has_it_once_for_equal_checkpoints(evaluation: EvaluationRecord) -> None:
    best, last = {**evaluation.record}, {**evaluation.record, "checkpoint": "last"}
    said = summary(best, last)
    assert said.count("members best = last: PGD-8 (L∞, ε = 0.02), n = 80; accuracy of each member (column)") == 1
    assert said.count("50.0 % [39.3, 60.7]") == 1
    other = {**last, "members": {**last["members"], "seconds": 2.0}}
    assert summary(best, other).count("50.0 % [39.3, 60.7]") == 2


def test_the_picture_is_the_matrix(evaluation: EvaluationRecord) -> None:
    figures = blocks(evaluation, Figure)
    place = next(number for number, each in enumerate(figures) if each.name == "members-best")
    assert "PGD-8 (L∞, ε = 0.02)" in figures[place].caption and "n = 80" in figures[place].caption
    (axis,) = figures[place].drawing.figure.axes
    assert axis.get_ylabel() == "member attacked"
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts == {(column + 0.5, row + 0.5): PERCENT[row][column] for row in (0, 1) for column in (0, 1)}
    assert np.allclose(axis.collections[0].get_array(), [[0.1, 0.9], [0.5, 0.0]])


def test_the_mirror_has_a_row_for_each_pair(evaluation: EvaluationRecord) -> None:
    rows = [row for row in attack_rows(evaluation.record) if "member" in row[0]]
    assert [row[0] for row in rows] == [f"pgd on member {i}, member {j} evaluated" for i in (0, 1) for j in (0, 1)]
    assert all(row[1:4] == [0.02, 8, 80] for row in rows) and [row[4] for row in rows] == [0.1, 0.9, 0.5, 0.0]


def test_a_figure_that_is_not_its_masks_is_called_out(evaluation: EvaluationRecord) -> None:
    assert record_disagreements(evaluation) == ()
    members = {**evaluation.record["members"], "n": 79}
    members["robust"] = [members["robust"][0], [{**members["robust"][1][0], "accuracy": 0.6}, members["robust"][1][1]]]
    said = record_disagreements(replace(evaluation, record={**evaluation.record, "members": members}))
    assert len(said) == 2 and said[0].startswith("members.n: the record has 79")
    assert said[1].startswith("members.robust.1.0.accuracy: the record has 0.6")
