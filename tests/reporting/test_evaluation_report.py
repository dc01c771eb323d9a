"""The tables of a report hold every figure of the record, and what cannot be known is a dash."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atbench.reporting import report
from atbench.reporting.audit_report import audit_blocks, untrusted_notices
from atbench.reporting.document import Block, Facts, Notice, Paragraph, Table
from atbench.reporting.evaluation_report import accuracy_blocks, class_blocks, merge_equal_evaluations
from atbench.reporting.results import EvaluationRecord, read_evaluation
from atbench.reporting.run_folder import read_run
from atbench.reporting.run_report import build_run_report
from tests.support.outcomes import CLASSES, LABEL, STANDARD, Made, write

EVERYTHING = Made(attacks=STANDARD, sequential=True, norms=("l2", "l1"))
CHECK = {"name": "gradients", "value": 0.4, "threshold": 0.01, "verdict": "flag", "sentence": "40 % have none."}
AUDIT = {
    "trusted": False,
    "flags": ["gradients"],
    "sentence": "1 of 2 audit checks flagged: gradients. Not run: noise.",
    "checks": [
        {"name": "noise", "value": None, "threshold": None, "verdict": "not run", "sentence": "Run noise."},
        {"name": "eps", "value": 0.0, "threshold": 0.12, "verdict": "pass", "sentence": "Falls to 0."},
        CHECK,
    ],
}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    return made(tmp_path_factory.mktemp("evaluation"), EVERYTHING)


def made(folder: Path, given: Made) -> EvaluationRecord:
    write(folder, "best", 2, given)
    return read_evaluation(folder / "best.json")


def tables(*evaluations: EvaluationRecord) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    found = [block for block in (*accuracy_blocks(evaluations), *class_blocks(evaluations)) if isinstance(block, Table)]
    return [(table.columns, [[cell.text for cell in row] for row in table.rows]) for table in found]


def table(column: str, *evaluations: EvaluationRecord) -> list[dict[str, str]]:
    """The rows of the first table that has a column of this name."""
    columns, rows = next((columns, rows) for columns, rows in tables(*evaluations) if column in columns)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def paragraphs(found: Iterable[Block]) -> str:
    return "\n".join(block.text for block in found if isinstance(block, Paragraph))


def words(entry: dict[str, Any]) -> str:
    return f"{100 * entry['accuracy']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def test_every_attack_has_its_row(evaluation: EvaluationRecord) -> None:
    clean, sweep, *rows = table("broke", evaluation)
    assert clean["after"] == words(evaluation.record["clean"]) and clean["run on"] == "60"
    assert (sweep["attack"], sweep["run on"], sweep["broke"]) == ("PGD-50", "58", "22")
    assert sweep["alone"] == words(evaluation.record["steps"][-1])
    for row, entry in zip(rows, evaluation.record["attacks"], strict=True):
        assert (row["attack"], row["access"]) == (entry["name"], entry["access"])
        counts = [entry[key] for key in ("tried", "broken", "broken_eight_bit", "forwards", "gradients")]
        shown = [row[key] for key in ("run on", "broke", "broke as 8-bit", "forwards", "gradients")]
        assert shown == [f"{count:,}" for count in counts]
        assert (row["alone"], row["after"]) == ("—", words(entry["after"]))
    assert [row["broke"] for row in rows] == ["3", "2", "1", "0"]
    (settings,) = [block for block in accuracy_blocks([evaluation]) if isinstance(block, Facts)]
    assert dict(settings.rows)["apgd_t"] == "steps=100, targets=9"
    assert "step 0.05 (12.75/255), uniform start, 1 restart, objective ce" in dict(settings.rows)["PGD-50"]
    assert rows[-1]["after"] == words(evaluation.record["robust"])


def test_an_attack_on_all_examples_has_an_accuracy_of_its_own(tmp_path: Path) -> None:
    found = made(tmp_path, Made(attacks=STANDARD))
    for row, entry in zip(table("broke", found)[2:], found.record["attacks"], strict=True):
        assert row["alone"] == words(entry["alone"]) != row["after"] and row["run on"] == "58"


def test_steps_and_radii_are_one_table(evaluation: EvaluationRecord) -> None:
    rows = {row["k"]: row for row in table("k", evaluation)}
    assert list(rows) == ["1", "5", "20", "50"]
    for entry in evaluation.record["steps"]:
        assert rows[str(entry["k"])]["ε = 0.2"] == words(entry)
    for entry in evaluation.record["eps"][1:]:
        assert rows["20"][f"ε = {entry['eps']:.4g}"] == words(entry)
    assert rows["50"]["ε = 0.1"] == rows["50"]["ε = 0.4"] == "—", "20 steps were taken there"
    codes = evaluation.outcomes["surface"][2]  # type: ignore[index]
    share = np.mean((codes == -1) | (codes > 5))
    assert rows["5"]["ε = 0.4"].startswith(f"{100 * share:.1f} % [")


def test_the_union_is_of_examples_not_of_figures(evaluation: EvaluationRecord) -> None:
    arrays = evaluation.outcomes
    assert arrays is not None
    left = arrays["robust"] & (arrays["broken_at_l2"] == -1) & (arrays["broken_at_l1"] == -1)
    rows = table("threat", evaluation)
    assert [row["threat"] for row in rows] == ["L∞, ε = 0.2 (51/255)", "L2, ε = 1", "L1, ε = 1", "all of these"]
    assert rows[-1]["accuracy"].startswith(f"{100 * left.mean():.1f} % [")
    assert left.mean() < min(arrays["robust"].mean(), *(found.value for _, _, found in evaluation.norms.values()))


def test_classes_and_the_worst_of_them(evaluation: EvaluationRecord) -> None:
    arrays = evaluation.outcomes
    assert arrays is not None
    rows = table("class", evaluation)
    for k, row in enumerate(rows):
        mask = k == LABEL
        assert row["under attack"].startswith(f"{100 * arrays['robust'][mask].mean():.1f} % [")
        assert row["clean"].startswith(f"{100 * arrays['clean'][mask].mean():.1f} % [") and row["n"] == "6"
    worst = min(range(CLASSES), key=lambda k: arrays["robust"][k == LABEL].mean())
    said = paragraphs(class_blocks([evaluation]))
    assert f"the worst class under attack is {worst}, {rows[worst]['under attack']}" in said


def test_distances_are_quartiles_or_infinite(evaluation: EvaluationRecord) -> None:
    (row,) = table("never broken", evaluation)
    assert row["attack"] == "fab_t" and row["norm"] == "L∞"
    assert row["upper quartile"] == "∞" and row["never broken"] == "96.8 %", "1 of the 31 that were left"


def test_confidence_has_both_kinds_of_images(evaluation: EvaluationRecord) -> None:
    rows = table("ECE", evaluation)
    assert [row["on"] for row in rows] == ["clean images", "adversarial images"]
    for row, key in zip(rows, ("clean", "adversarial"), strict=True):
        found = evaluation.record["calibration"][key]
        assert (row["ECE"], row["NLL"]) == (f"{100 * found['ece']:.1f}", f"{found['nll']:.3f}")


def test_without_a_sweep_there_is_neither_its_table_nor_its_curves(make_run) -> None:
    run = make_run(evaluated={"steps": (), "attacks": STANDARD, "sequential": True}, checkpoints=("best",))
    report.write_report(run)
    text = (run / "report.md").read_text()
    assert "AutoAttack (standard)" in text and "PGD over steps" not in text and "PGD-" not in text.replace("PGD-AT", "")
    assert not (run / "pictures" / "steps.png").exists() and (run / "pictures" / "confusion-best.png").exists()


def test_without_its_masks_a_record_still_has_its_tables(tmp_path: Path) -> None:
    made(tmp_path, EVERYTHING)
    (tmp_path / "best.npz").unlink()
    bare = read_evaluation(tmp_path / "best.json")
    assert table("threat", bare)[-1]["accuracy"] == "—" and table("class", bare)[0]["clean"] == "—"
    assert table("k", bare)[1]["ε = 0.4"] == "—"


def test_equal_checkpoints_are_told_once(make_run) -> None:
    same, other = make_run("same"), make_run("other", last_robust=0.5)
    path = same / "evaluation" / "last.json"
    path.write_text(path.read_text().replace('"epoch": 3', '"epoch": 2'))
    assert [e.checkpoint for e in merge_equal_evaluations(list(read_run(same).evaluations.values()))] == ["best = last"]
    assert [e.checkpoint for e in merge_equal_evaluations(list(read_run(other).evaluations.values()))] == [
        "best",
        "last",
    ]


def test_an_audit_that_does_not_trust_stands_above_everything(make_run) -> None:
    run = make_run(evaluated={"audit": AUDIT}, checkpoints=("best",))
    first = build_run_report(read_run(run)).blocks[0]
    assert isinstance(first, Notice) and first.grave
    assert "Do not cite these accuracies" in first.text and "1 of 2 audit checks flagged: gradients." in first.text
    report.write_report(run)
    page = (run / "report.html").read_text()
    assert '<p class="notice grave">Do not cite these accuracies' in page
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in page.split("\n") if line.startswith("<tr><td")]
    assert [
        row[1:] for row in rows if row[0] == "best" and len(row) == 6 and row[2] in ("flag", "pass", "not run")
    ] == [
        ["gradients", "flag", "0.4", "0.01", "40 % have none."],
        ["noise", "not run", "—", "—", "Run noise."],
        ["eps", "pass", "0", "0.12", "Falls to 0."],
    ]


def test_an_audit_that_trusts_or_was_not_made_raises_no_banner(make_run) -> None:
    fine = {"trusted": True, "flags": [], "sentence": "3 checks, no flag.", "checks": AUDIT["checks"][:2]}
    evaluations = list(read_run(make_run("fine", evaluated={"audit": fine})).evaluations.values())
    assert list(untrusted_notices(evaluations)) == []
    assert "3 checks, no flag." in paragraphs(audit_blocks(evaluations))
    plain = list(read_run(make_run("plain")).evaluations.values())
    assert list(untrusted_notices(plain)) == [] and "Not audited." in paragraphs(audit_blocks(plain))


def test_an_evaluation_that_has_not_ended_is_mentioned(make_run) -> None:
    run = make_run(checkpoints=("best",))
    (run / "evaluation" / "last.partial.json").write_text("{}")
    (run / "evaluation" / "parts").mkdir()
    report.write_report(run)
    text = (run / "report.md").read_text()
    assert "An evaluation is unfinished (evaluation/last.partial.json)" in text
    for file in ("evaluation/best.examples.npz", "evaluation/parts/"):
        assert f"**{file}**" in text
