"""Figures of an evaluation: accuracy curves, reliability, confusion, transfer, example images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atbench.reporting import example_grid, plots
from atbench.reporting.document import Figure
from atbench.reporting.plots import Curve
from atbench.reporting.results import Accuracy, EvaluationRecord

_BAND = "Bands: 95 % interval."


def curve_figures(evaluations: Sequence[EvaluationRecord]) -> Iterator[Figure]:
    """Accuracy of all checkpoints against k and ε."""
    swept = [evaluation for evaluation in evaluations if evaluation.steps]
    if swept:
        drawing = plots.draw_accuracy_by_steps([steps_curve(e) for e in swept])
        yield Figure("steps", drawing, f"Accuracy against k. {_BAND}")
    if any(e.eps for e in swept):
        drawing = plots.draw_accuracy_by_eps([eps_curve(e) for e in swept if e.eps])
        yield Figure("eps", drawing, f"Accuracy against the radius ε. {_BAND}")


def example_figure(first: EvaluationRecord) -> Iterator[Figure]:
    """Images of a checkpoint, attacked."""
    if first.outcomes is not None and len(first.outcomes.get("shown_index", ())):
        caption = f"Checkpoint {first.checkpoint}: clean, adversarial, and their difference around grey."
        yield Figure(first.path.stem, example_grid.draw_example_grid(first.outcomes), caption, wide=True)


def reliability_figures(evaluations: Sequence[EvaluationRecord]) -> Iterator[Figure]:
    for evaluation in evaluations:
        diagrams = {f"{kind} images": value for kind, value in evaluation.record["calibration"].items() if value}
        if diagrams:
            name = f"reliability-{evaluation.path.stem}"
            caption = f"Checkpoint {evaluation.checkpoint}: accuracy against confidence. Bars: 95 % interval."
            yield Figure(name, example_grid.draw_reliability(diagrams, name), caption)


def confusion_figures(evaluations: Sequence[EvaluationRecord]) -> Iterator[Figure]:
    for evaluation in evaluations:
        name, counts = f"confusion-{evaluation.path.stem}", (evaluation.outcomes or {}).get("confusion")
        classes = [str(entry["class"]) for entry in evaluation.record["classes"]["classes"]]
        if counts is not None and len(classes) <= example_grid.MOST_CLASSES:
            caption = f"Checkpoint {evaluation.checkpoint}: predictions under attack by true class, in examples."
            yield Figure(name, example_grid.draw_confusion(name, counts, classes), caption)


def steps_curve(evaluation: EvaluationRecord) -> Curve:
    """Accuracy over k, the clean accuracy at k = 0; no points without a sweep."""
    points = {0: evaluation.clean, **dict(sorted(evaluation.steps.items()))} if evaluation.steps else {}
    return _curve(evaluation.checkpoint, list(points), list(points.values()))


def eps_curve(evaluation: EvaluationRecord) -> Curve:
    return _curve(evaluation.checkpoint, [eps for eps, _, _ in evaluation.eps], [a for _, _, a in evaluation.eps])


def _curve(label: str, x: list[float] | list[int], y: list[Accuracy]) -> Curve:
    values = tuple(a.value for a in y), tuple(a.low for a in y), tuple(a.high for a in y)
    return Curve(label, tuple(float(value) for value in x), *values)
