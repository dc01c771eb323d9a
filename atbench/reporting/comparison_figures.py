"""Figures of a comparison: accuracy against cost and against each other, curves over k, ε and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from atbench.reporting import plots
from atbench.reporting.columns import Column
from atbench.reporting.comparison import Row, Spread
from atbench.reporting.document import Figure
from atbench.reporting.evaluation_figures import eps_curve, steps_curve
from atbench.reporting.members_report import transfer_figure
from atbench.reporting.plots import Curve, Point
from atbench.reporting.results import EvaluationRecord

_MOST_CURVES = 10  # in one figure
_LONGEST = 40  # characters of a name in a legend


def comparison_figures(rows: Sequence[Row], headline: Column | None) -> Iterator[Figure]:
    """Points of all rows, and the curves of those of the highest robust accuracy; `rows` in that order."""
    yield from _points(rows, headline)
    shown = rows[:_MOST_CURVES]
    which = f" The {len(shown)} of {len(rows)} rows with the highest robust accuracy." if len(shown) < len(rows) else ""
    several = any(len(row.counted) > 1 for row in shown)
    band = "Bands: one standard deviation over seeds" + (
        ", 95 % interval where there is one seed." if any(len(row.counted) == 1 for row in shown) else "."
    )
    band = (band if several else "Bands: 95 % interval.") + which
    for name, draw, of in (
        ("steps", plots.draw_accuracy_by_steps, steps_curve),
        ("eps", plots.draw_accuracy_by_eps, eps_curve),
    ):
        curves = [curve for row in shown if (curve := _curve(row, _name(row, rows), of)) is not None]
        if curves:
            against = "k" if name == "steps" else "the radius ε"
            yield Figure(name, draw(curves), f"Best checkpoint: accuracy against {against}. {band}")
    groups = {_name(row, rows): [run.rows for run in row.counted if run.rows] for row in shown}
    groups = {name: runs for name, runs in groups.items() if runs}
    for name, words in (
        ("training", "PGD on held-out images"),
        ("loss", "Training loss"),
        ("gap", "Trained on − held out"),
    ):
        if groups:
            yield Figure(name, plots.draw_over_epochs(name, groups), f"{words} over training. {band}")
    yield from _adapted(rows)
    for row in rows:
        for evaluation in row.evaluations("best")[:1]:
            yield from transfer_figure(evaluation, f"members-{rows.index(row)}", _name(row, rows))


def _points(rows: Sequence[Row], headline: Column | None) -> Iterator[Figure]:
    """Robust accuracy of the best checkpoint against the clean one and against the cost of training."""
    if headline is None:
        return
    clean = [(row, 100 * found.mean) for row in rows if (found := row.figure("best", lambda e: e.clean))]
    seconds = [(row, spread.mean) for row in rows if (spread := row.train_seconds)]
    passes = [(row, count) for row in rows if (count := row.train_passes)]
    for name, values, axis, words in (
        ("clean-robust", clean, "clean accuracy, %", "clean accuracy"),
        ("seconds", seconds, "seconds of training", "the time of training"),
        ("passes", passes, "forward passes an image, at least", "the least cost of training in forward passes"),
    ):
        points = [point for row, x in values if (point := _point(row, rows, headline, x)) is not None]
        if len(points) > 1:
            caption = f"Best checkpoint: robust accuracy ({headline.title}) against {words}. Dashed: the frontier."
            yield Figure(name, plots.draw_points(name, points, axis, cost=name != "clean-robust"), caption)


def _point(row: Row, rows: Sequence[Row], headline: Column, x: float) -> Point | None:
    """A row's robust accuracy: of one run with its interval, or the mean over seeds with one standard deviation."""
    spread = row.figure("best", headline.of)
    if spread is None:
        return None
    low, high = spread.mean - (spread.std or 0.0), spread.mean + (spread.std or 0.0)
    if spread.std is None and (only := headline.of(row.evaluations("best")[0])):
        low, high = only.low, only.high
    return Point(_name(row, rows), x, 100 * spread.mean, 100 * low, 100 * high)


def _adapted(rows: Sequence[Row]) -> Iterator[Figure]:
    """What methods adapt over epochs, of the first seed of each row that has it."""
    first = {_name(row, rows): row.counted[0].rows for row in rows}
    for name in dict.fromkeys(name for found in first.values() for name in plots.adapted(found)):
        runs = {label: found for label, found in first.items() if name in plots.adapted(found)}
        words = f"{name} over training, first seed; bands: ± one standard deviation between examples."
        yield Figure(f"adapted_{name}", plots.draw_adapted(name, runs), words)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The label of a row, and its data and network where they differ between rows; by its place where that is long."""
    parts = [row.label]
    parts += [row.dataset] if len({each.dataset for each in rows}) > 1 else []
    parts += [row.model] if len({each.model for each in rows}) > 1 else []
    name = ", ".join(parts)
    return name if len(name) <= _LONGEST else f"{row.method}, row {rows.index(row) + 1}"


def _curve(row: Row, name: str, of: Callable[[EvaluationRecord], Curve]) -> Curve | None:
    """A row's curve: of one run with its interval, or the mean over seeds with one standard deviation."""
    curves = [of(evaluation) for evaluation in row.evaluations("best")]
    if not curves or not curves[0].x or any(curve.x != curves[0].x for curve in curves):
        return None
    if len(curves) == 1:
        only = curves[0]
        return Curve(name, only.x, only.y, only.low, only.high)
    spreads = [Spread(values) for values in zip(*(curve.y for curve in curves), strict=True)]
    middle = tuple(spread.mean for spread in spreads)
    half = [spread.std or 0.0 for spread in spreads]
    low = tuple(m - h for m, h in zip(middle, half, strict=True))
    return Curve(name, curves[0].x, middle, low, tuple(m + h for m, h in zip(middle, half, strict=True)))
