"""What a network is worth that may refuse to answer, as blocks of a report and a line of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atbench.reporting.document import Block, Cell, Heading, Paragraph, Table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import NOTHING, interval, percent

#: The shares of a record that exist at the threshold alone, and what they are called.
_ACCEPTED = {
    "tpr": "right predictions that are accepted (TPR)",
    "fpr": "wrong predictions that are accepted (FPR)",
    "adversarial": "wrong answers under attack to what is right without, accepted",
    "accepted": "clean images that are accepted",
}
_ERRORS = {"error": "clean error", "robust_error": "robust error"}


def rejection_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Errors with and without rejection beside each other; nothing where no checkpoint was evaluated so."""
    rows: list[tuple[Cell, ...]] = []
    lines = []
    for evaluation in evaluations:
        if (found := evaluation.record.get("reject")) is not None:
            lines.append(_threshold(evaluation.checkpoint, found))
            rows += [(Cell(evaluation.checkpoint), *row) for row in _rows(found)]
    if rows:
        yield Heading("With rejection of unsure predictions", part=True)
        yield Paragraph(
            " ".join(lines) + " The robust error counts an example as wrong if its clean image or the most confident "
            "wrong answer that any attack found around it is wrong and accepted, among the examples of which either is "
            "accepted; without rejection it is 1 − the worst case. AUC: the chance that a "
            "right prediction is surer than an adversarial one. A stronger attack can only raise the robust error."
        )
        yield Table(("checkpoint", "figure", "without rejection", "n without", "with rejection", "n with"), tuple(rows))


def rejection_line(checkpoint: str, found: Mapping[str, Any]) -> str:
    """`best: robust error 12.0 % [...] with rejection (99.3 % of right predictions accepted), 95.0 % without`."""
    accepted = percent(found["tpr"]["share"])
    without = percent(found["without"]["robust_error"]["share"])
    robust = f"robust error {_words(found['robust_error'])} with rejection"
    return f"{checkpoint}: {robust} ({accepted} of the right test predictions accepted), {without} without"


def _threshold(checkpoint: str, found: Mapping[str, Any]) -> str:
    held = found["held_out"]
    return (
        f"{checkpoint}: predictions of a confidence below {found['threshold']:.4f} are rejected, which accepts "
        f"{_words(held)} of the {held['n']} right predictions on held-out training images ({percent(found['share'])} "
        "asked for)."
    )


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    nothing = Cell(NOTHING)
    for key, name in _ERRORS.items():
        without = found["without"][key]
        yield Cell(name), _cell(without), _count(without), _cell(found[key]), _count(found[key])
    for key, name in _ACCEPTED.items():
        yield Cell(name), nothing, Cell(""), _cell(found[key]), _count(found[key])
    auc = Cell(NOTHING if found["auc"] is None else f"{found['auc']:.3f}", found["auc"])
    yield Cell("AUC, right against adversarial"), nothing, Cell(""), auc, Cell("")


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(_words(entry)) if entry["share"] is None else Cell(_words(entry), entry["share"])


def _count(entry: Mapping[str, Any]) -> Cell:
    return Cell(f"{entry['n']:,}", entry["n"])


def _words(entry: Mapping[str, Any]) -> str:
    """`61.0 % [56.4, 65.4]`, a dash where there was nothing to take a share of."""
    return NOTHING if entry["share"] is None else f"{percent(entry['share'])} {interval(entry['low'], entry['high'])}"
