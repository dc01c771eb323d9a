"""Unforeseen distortions in the report, on the terminal, in the mirror and against their masks."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from atbench.evaluation import record_files, summarize
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.unforeseen import UnforeseenPlan, add_unforeseen
from atbench.reporting import print_summary
from atbench.reporting.agreement import record_disagreements
from atbench.reporting.document import Paragraph, Table
from atbench.reporting.logged_values import attack_rows, summary_values
from atbench.reporting.results import EvaluationRecord, read_evaluation
from atbench.reporting.unforeseen_report import unforeseen_blocks
from tests.support.flat import rejected

N = 90
#: Of 80 images that are right, how many each attack breaks at each size: of CIFAR-10's accuracies 0.9 to 0.
WRONG = {"linf": (8, 17, 26, 44, 62, 80), "elastic": (0, 8, 8, 17, 17, 26)}


def made(folder: Path, data: str | None, attacks: tuple[str, ...] = tuple(WRONG)) -> EvaluationRecord:
    """An evaluation with made-up outcomes."""
    _, found = rejected(reject=None)
    clean, counts = torch.arange(N) < 80, [count for name in attacks for count in WRONG[name]]
    if attacks:
        kept = [(np.arange(count), {"z": np.zeros((count, 2), np.float32)}) for count in counts]
        searches = [AttackResult("", "gradient", clean, clean, rows=rows, kept=each) for rows, each in kept]
        everyone = replace(found, outcomes={**found.outcomes, "clean": clean.numpy()})
        add_unforeseen(everyone, UnforeseenPlan(attacks, 200, "cifar10", data), searches)
        found.outcomes["unforeseen_robust"] = everyone.outcomes["unforeseen_robust"]
    about = {"schema": 3, "checkpoint": "best", "epoch": 1, "split": "test"}
    arrays, images = found.outcomes, found.examples
    record_files.save_record(folder, "best", {**about, **summarize(found)}, arrays, images, {})
    return read_evaluation(folder / "best.json")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    return made(tmp_path_factory.mktemp("unforeseen"), "cifar10")


def summary(given: EvaluationRecord) -> str:
    console = Console(file=io.StringIO(), width=240)
    print_summary([given.record], Path("run"), [], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def uar(name: str) -> float:
    ata = {"linf": 0.9095 + 0.878 + 0.8159 + 0.7134 + 0.465 + 0.2311}
    ata["elastic"] = 0.8738 + 0.8126 + 0.7209 + 0.5822 + 0.4545 + 0.2785
    return sum(80 - count for count in WRONG[name]) / N / ata[name]


def test_the_tables_have_every_size_and_every_uar(evaluation: EvaluationRecord) -> None:
    blocks = list(unforeseen_blocks([evaluation]))
    sizes, means = [block for block in blocks if isinstance(block, Table)]
    assert [row[1].text for row in sizes.rows] == ["linf"] * 6 + ["elastic"] * 6
    assert [cell.text.partition(" ")[0] for cell in sizes.rows[1][3:]] == ["2", "70.0", "87.8"]
    assert [row[3].value for row in means.rows] == pytest.approx([uar("linf"), uar("elastic")])
    (said,) = [block.text for block in blocks if isinstance(block, Paragraph)]
    both = (uar("linf") + uar("elastic")) / 2
    assert f"best: mUAR {100 * both:.1f} [" in said and "of 2 attacks, n = 90." in said


def test_the_terminal_has_a_line_and_a_table(evaluation: EvaluationRecord) -> None:
    said = summary(evaluation)
    assert "unforeseen  best: mUAR" in said and "70.0 % (2)" in said and f"{100 * uar('elastic'):.1f} [" in said


def test_the_mirror_has_a_row_for_each_size(evaluation: EvaluationRecord) -> None:
    rows = [row for row in attack_rows(evaluation.record) if "pixels of flow" in row[0]]
    assert [row[1] for row in rows] == [0.125, 0.25, 0.5, 1, 2, 8] and all(row[2:4] == [200, N] for row in rows)
    assert rows[1][4] == pytest.approx(72 / 90)
    values = {name: value for name, value in summary_values(evaluation.record) if name.startswith("uar/")}
    assert set(values) == {"uar/linf", "uar/elastic", "uar/mean"} and values["uar/linf"] == pytest.approx(uar("linf"))


def test_without_reference_accuracies_there_is_a_dash_and_a_reason(tmp_path: Path) -> None:
    bare = made(tmp_path, None)
    said = summary(bare)
    assert "mUAR — of 2 attacks, n = 90 (no reference accuracies of this data set" in said and "70.0 % (2)" in said
    assert not any(name.startswith("uar/") for name, _ in summary_values(bare.record))
    _, means = [block for block in unforeseen_blocks([bare]) if isinstance(block, Table)]
    assert [row[3].text for row in means.rows] == ["—", "—"] and record_disagreements(bare) == ()


def test_without_distortions_there_is_nothing(tmp_path: Path) -> None:
    bare = made(tmp_path, None, ())
    assert list(unforeseen_blocks([bare])) == [] and "unforeseen" not in summary(bare)
    assert not any("flow" in row[0] for row in attack_rows(bare.record)) and record_disagreements(bare) == ()


def test_a_figure_that_is_not_its_mask_is_called_out(evaluation: EvaluationRecord) -> None:
    assert record_disagreements(evaluation) == ()
    lied: dict[str, Any] = copy.deepcopy(dict(evaluation.record))
    lied["unforeseen"]["attacks"][1]["sizes"][2]["accuracy"] = 0.6
    (said,) = record_disagreements(replace(evaluation, record=lied))
    assert said.startswith("unforeseen.attacks.elastic.sizes.2.accuracy: the record has 0.6")
