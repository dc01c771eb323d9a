"""Figures of an evaluation: accuracy curves, reliability, confusion, example images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from atbench.reporting import example_grid, plots
from atbench.reporting.document import Block, Figure
from atbench.reporting.members_report import transfer_attack
from atbench.reporting.plots import Curve
from atbench.reporting.results import Accuracy, EvaluationRecord

_BAND = "Bands: 95 % interval."


def evaluation_figures(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Curves of all checkpoints, confidence and confusions of each, and images of the first."""
    swept = [evaluation for evaluation in evaluations if evaluation.steps]
    if swept:
        yield Figure(
            "steps", plots.draw_accuracy_by_steps([steps_curve(e) for e in swept]), f"Accuracy against k. {_BAND}"
        )
    if any(e.eps for e in swept):
        curves = [eps_curve(e) for e in swept if e.eps]
        yield Figure("eps", plots.draw_accuracy_by_eps(curves), f"Accuracy against the radius ε. {_BAND}")
    for evaluation in evaluations:
        yield from _checkpoint_figures(evaluation)
        yield from _transfer_figure(evaluation)
    first = evaluations[0]
    if first.outcomes is not None and len(first.outcomes.get("shown_index", ())):
        caption = f"Checkpoint {first.checkpoint}: clean, adversarial, and their difference around grey."
        yield Figure(first.path.stem, example_grid.draw_example_grid(first.outcomes), caption)


def _checkpoint_figures(evaluation: EvaluationRecord) -> Iterator[Block]:
    name, arrays = evaluation.path.stem, evaluation.outcomes or {}
    diagrams = {f"{kind} images": value for kind, value in evaluation.record["calibration"].items() if value}
    if diagrams:
        caption = f"Checkpoint {evaluation.checkpoint}: accuracy against confidence. Bars: 95 % interval."
        yield Figure(f"reliability-{name}", example_grid.draw_reliability(diagrams, f"reliability-{name}"), caption)
    classes = [str(entry["class"]) for entry in evaluation.record["classes"]["classes"]]
    if "confusion" in arrays and len(classes) <= example_grid.MOST_CLASSES:
        caption = f"Checkpoint {evaluation.checkpoint}: predictions under attack by true class, in examples."
        yield Figure(f"confusion-{name}", example_grid.draw_confusion(arrays["confusion"], classes), caption)


def _transfer_figure(evaluation: EvaluationRecord) -> Iterator[Block]:
    """Transfer between an ensemble's members."""
    members = evaluation.record.get("members")
    if members and members["n"]:
        accuracy = np.array([[entry["accuracy"] for entry in row] for row in members["robust"]])
        what = "accuracy of each member, %, under the attack on the member of the row"
        caption = f"Checkpoint {evaluation.checkpoint}: {what}: {transfer_attack(members)}."
        yield Figure(f"members-{evaluation.path.stem}", example_grid.draw_transfer(accuracy), caption)


def steps_curve(evaluation: EvaluationRecord) -> Curve:
    """Accuracy over k, the clean accuracy at k = 0; no points without a sweep."""
    points = {0: evaluation.clean, **dict(sorted(evaluation.steps.items()))} if evaluation.steps else {}
    return _curve(evaluation.checkpoint, list(points), list(points.values()))


def eps_curve(evaluation: EvaluationRecord) -> Curve:
    return _curve(evaluation.checkpoint, [eps for eps, _, _ in evaluation.eps], [a for _, _, a in evaluation.eps])


def _curve(label: str, x: list[float] | list[int], y: list[Accuracy]) -> Curve:
    values = tuple(a.value for a in y), tuple(a.low for a in y), tuple(a.high for a in y)
    return Curve(label, tuple(float(value) for value in x), *values)
