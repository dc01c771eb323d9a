"""The audit of an evaluation as blocks of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atbench.reporting.document import Block, Cell, Notice, Paragraph, table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import NOTHING

_ORDER = ("flag", "not run", "pass")


def untrusted_notices(evaluations: Sequence[EvaluationRecord]) -> Iterator[Notice]:
    """The warning above all figures of an evaluation that the audit does not trust."""
    for evaluation in evaluations:
        if evaluation.audit["checks"] and not evaluation.audit["trusted"]:
            text = f"Do not cite these accuracies. Checkpoint {evaluation.checkpoint}: {evaluation.audit['sentence']}"
            yield Notice(text, grave=True)


def flag_lines(evaluation: EvaluationRecord) -> Iterator[str]:
    for check in evaluation.audit["checks"]:
        if check["verdict"] == "flag":
            yield f"{check['name']}: {check['sentence']}"


def audit_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Verdicts and checks, flags first."""
    audited = [evaluation for evaluation in evaluations if evaluation.audit["checks"]]
    if not audited:
        yield Paragraph("Not audited. `eval.audit=250` runs the audit checks on 250 images.")
        return
    rows: list[list[Cell | str]] = []
    for evaluation in audited:
        yield Paragraph(f"Checkpoint {evaluation.checkpoint}: {evaluation.audit['sentence']}")
        checks = sorted(evaluation.audit["checks"], key=lambda check: _ORDER.index(check["verdict"]))
        rows += [[evaluation.checkpoint, *_row(check)] for check in checks]
    yield table(("checkpoint", "check", "verdict", "value", "threshold", "measurement"), rows, "audit")


def _row(check: Mapping[str, Any]) -> Iterator[Cell | str]:
    yield from (check["name"], Cell(check["verdict"], _ORDER.index(check["verdict"])))
    for key in ("value", "threshold"):
        yield NOTHING if check[key] is None else Cell(f"{check[key]:.4g}", float(check[key]))
    yield check["sentence"]
