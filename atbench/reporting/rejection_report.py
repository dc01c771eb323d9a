"""Accuracies with rejection of unsure predictions, as blocks of a report and a line of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atbench.reporting.document import Block, Cell, Heading, Paragraph, table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import NOTHING, percent, with_interval

#: Titles of the shares that are only defined with rejection.
_ACCEPTED = {
    "tpr": "right predictions that are accepted (TPR)",
    "fpr": "wrong predictions that are accepted (FPR)",
    "adversarial": "adversarial examples of right predictions that are accepted",
    "accepted": "clean images that are accepted",
}
_ERRORS = {"error": "clean error", "robust_error": "robust error"}


def rejection_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Errors with and without rejection; empty if no checkpoint was evaluated with it."""
    rows: list[tuple[Cell | str, ...]] = []
    lines = []
    for evaluation in evaluations:
        if (reject := evaluation.record.get("reject")) is not None:
            lines.append(_threshold(evaluation.checkpoint, reject))
            rows += [(evaluation.checkpoint, *row) for row in _rows(reject)]
    if rows:
        yield Heading("With rejection of unsure predictions", part=True)
        yield Paragraph(
            " ".join(lines) + " The robust error counts an example as wrong if its clean image or its most confident "
            "adversarial example is misclassified and accepted, among the examples of which either is accepted; "
            "without rejection it is 1 − the worst case. AUC: the probability that a right prediction is more "
            "confident than an adversarial one. A stronger attack can only raise the robust error."
        )
        yield table(
            ("checkpoint", "figure", "without rejection", "n without", "with rejection", "n with"), rows, "rejection"
        )


def rejection_line(checkpoint: str, reject: Mapping[str, Any]) -> str:
    """`best: robust error 12.0 % [...] with rejection (99.3 % of right predictions accepted), 95.0 % without`."""
    accepted = percent(reject["tpr"]["share"])
    without = percent(reject["without"]["robust_error"]["share"])
    robust = f"robust error {_share_text(reject['robust_error'])} with rejection"
    return f"{checkpoint}: {robust} ({accepted} of the right test predictions accepted), {without} without"


def _threshold(checkpoint: str, reject: Mapping[str, Any]) -> str:
    held_out = reject["held_out"]
    return (
        f"{checkpoint}: predictions with confidence below {reject['threshold']:.4f} are rejected, which accepts "
        f"{_share_text(held_out)} of the {held_out['n']} right predictions on held-out training images (target "
        f"{percent(reject['share'])})."
    )


def _rows(reject: Mapping[str, Any]) -> Iterator[tuple[Cell | str, ...]]:
    for key, name in _ERRORS.items():
        without = reject["without"][key]
        yield name, _cell(without), _count(without), _cell(reject[key]), _count(reject[key])
    for key, name in _ACCEPTED.items():
        yield name, NOTHING, "", _cell(reject[key]), _count(reject[key])
    auc = Cell(NOTHING if reject["auc"] is None else f"{reject['auc']:.3f}", reject["auc"])
    yield "AUC, right vs. adversarial", NOTHING, "", auc, ""


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(_share_text(entry), entry["share"])


def _count(entry: Mapping[str, Any]) -> Cell:
    return Cell(f"{entry['n']:,}", entry["n"])


def _share_text(entry: Mapping[str, Any]) -> str:
    """`61.0 % [56.4, 65.4]`, a dash where n = 0."""
    return NOTHING if entry["share"] is None else with_interval(entry["share"], entry["low"], entry["high"])
