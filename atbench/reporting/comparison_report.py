"""Comparison as a document, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table as RichTable

from atbench.reporting import plots
from atbench.reporting.agreement import record_disagreements
from atbench.reporting.audit_report import flag_lines
from atbench.reporting.columns import Column, attack_signature
from atbench.reporting.comparison import Comparison, Row, Spread
from atbench.reporting.document import Block, Cell, Document, Figure, Heading, Notice, Paragraph, Table, table
from atbench.reporting.evaluation_figures import eps_curve, steps_curve
from atbench.reporting.plots import Curve
from atbench.reporting.results import Accuracy, EvaluationRecord, bound_text
from atbench.reporting.run_folder import CHECKPOINTS, RunFolder
from atbench.reporting.run_report import threat_text
from atbench.reporting.wording import (
    NO_PROOF,
    NOTHING,
    duration,
    interval,
    mean_and_spread,
    norm_name,
    number_text,
    points,
    short_eps,
)

_MOST_CURVES = 10  # in one figure

HOW_TO_READ = (
    "Accuracies in percent. Runs that differ in nothing but the seed are one row: mean ± sample standard deviation "
    "over seeds; with one seed, its 95 % interval in brackets. A column is one attack, the same in every row. "
    "Drop: best − last, in points (robust overfitting), under"
)


def build_comparison_report(comparison: Comparison, title: str) -> Document:
    counted = [row for row in comparison.rows if row.counted]
    blocks: list[Block] = [
        Paragraph(f"{HOW_TO_READ} {comparison.columns.words or 'no attack: the rows have none in common'}."),
        *(Notice(text) for text in comparison_notices(comparison)),
    ]
    blocks.append(Table(*table_rows(comparison)))
    if counted:
        blocks += [Heading("Curves"), *_figures(counted, comparison.columns.headline)]
    blocks += [Heading("Every run"), _every_run(comparison)]
    blocks += [Heading("Methods"), _methods(comparison)]
    return Document(title, tuple(blocks))


def comparison_notices(comparison: Comparison) -> Iterator[str]:
    """Caveats of the comparison: bounds, unequal attacks, collapses, runs left out, warnings."""
    bounds = dict.fromkeys(bound_text(e.record) for e in comparison.counted if e.bound == "upper")
    for words in bounds:
        yield f"{words[0].upper()}{words[1:]}. {NO_PROOF}"
    if len({attack_signature(e) for e in comparison.counted}) > 1:
        yield (
            "The rows were not all attacked alike, and worst cases over different attacks are not comparable: see the "
            "runs' own reports; here every column is one PGD."
        )
    if len(sizes := sorted({e.n for e in comparison.counted})) > 1:
        counts = ", ".join(map(str, sizes))
        yield f"Different numbers of images were attacked ({counts}): their accuracies are not comparable."
    for row in comparison.rows:
        for seed, best, last in row.collapsed:
            under = next(e.basis for run in row.counted for e in run.evaluations.values())
            yield (
                f"Collapse: {row.label} on {row.dataset}, seed {seed}: {under} {100 * best:.1f} % "
                f"at the best checkpoint, {100 * last:.1f} % at the last. The mean hides this; see the run's report."
            )
        for run, why in row.left_out:
            yield f"Not in a mean: {row.label} on {row.dataset}, seed {run.seed} ({run.path.name}): {why}"
        for run in row.counted:
            records = run.evaluations.values()
            problems = [f"audit flag, {text}" for e in records for text in flag_lines(e)]
            problems += [text for e in records for text in (*e.warnings, *record_disagreements(e))]
            yield from (f"{run.path.name}: {problem}" for problem in dict.fromkeys(problems))
    yield from (f"Unreadable: {why}" for _, why in comparison.unreadable)


def terminal_table(comparison: Comparison) -> RichTable:
    columns, rows = table_rows(comparison)
    table = RichTable(*columns, box=None, header_style="dim", pad_edge=False)
    for row in rows:
        table.add_row(*(cell.text for cell in row))
    return table


def table_rows(comparison: Comparison) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    shared = comparison.columns
    differs = any(row.differs for row in comparison.rows)
    columns = ["method", *(["settings"] if differs else []), "plus", "dataset", "model", "threat"]
    for name in CHECKPOINTS:
        columns += [f"{name}: clean", *(f"{name}: {column.title}" for column in shared.columns)]
    columns += ["drop", "training", "seeds"]
    return tuple(columns), tuple(tuple(_row(row, shared.columns, shared.headline, differs)) for row in comparison.rows)


def _row(row: Row, accuracies: Sequence[Column], headline: Column | None, differs: bool) -> Iterator[Cell]:
    yield Cell(row.method)
    if differs:
        yield Cell(", ".join(f"{key}={number_text(value)}" for key, value in row.differs.items()))
    yield from (Cell(" + ".join(row.plus) or NOTHING), Cell(row.dataset), Cell(row.model))
    eps = row.eps if isinstance(row.eps, (int, float)) else None
    yield Cell(f"{norm_name(row.norm)} {short_eps(row.eps)}", eps)
    for name in CHECKPOINTS:
        yield _figure_cell(row, name, lambda e: e.clean)
        yield from (_figure_cell(row, name, column.of) for column in accuracies)
    yield _drop_cell(row.drop(headline))
    seconds = row.train_seconds
    yield Cell(duration(seconds.mean) if seconds else NOTHING, seconds.mean if seconds else None)
    yield Cell(_seeds(row), len(row.counted))


def _figure_cell(row: Row, checkpoint: str, of: Callable[[EvaluationRecord], Accuracy | None]) -> Cell:
    spread = row.figure(checkpoint, of)
    if spread is None:
        return Cell(NOTHING)
    if spread.std is not None:
        return Cell(mean_and_spread(spread.mean, spread.std), spread.mean)
    return _accuracy_cell(of(row.evaluations(checkpoint)[0]))


def _drop_cell(drop: Spread | None) -> Cell:
    if drop is None:
        return Cell(NOTHING)
    return Cell(f"{points(drop.mean)}" + (f" ± {100 * drop.std:.1f}" if drop.std is not None else ""), drop.mean)


def _seeds(row: Row) -> str:
    """How many seeds are in the means, and of how many: `2 of 3`."""
    tried = {run.seed for run in row.counted} | {run.seed for run, _ in row.left_out}
    counted = len(row.counted)
    return str(counted) if counted == len(tried) else f"{counted} of {len(tried)}"


def _figures(rows: Sequence[Row], headline: Column | None) -> Iterator[Block]:
    """The curves of the rows, at most those of the highest robust accuracy."""
    ranked = sorted(rows, key=lambda row: -_rank(row, headline))
    shown = ranked[:_MOST_CURVES]
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
        curves = [curve for row in shown if (curve := _curve(row, of)) is not None]
        if curves:
            against = "k" if name == "steps" else "the radius ε"
            yield Figure(name, draw(curves), f"Best checkpoint: accuracy against {against}. {band}")
    groups = {_name(row): [run.rows for run in row.counted if run.rows] for row in shown}
    if any(groups.values()):
        yield Figure("training", plots.draw_training({k: v for k, v in groups.items() if v}), f"Training. {band}")


def _rank(row: Row, headline: Column | None) -> float:
    spreads = [row.figure(name, headline.of) for name in CHECKPOINTS] if headline else []
    return next((spread.mean for spread in spreads if spread), 0.0)


def _name(row: Row) -> str:
    return f"{row.label}, {row.dataset}, {row.model}"


def _curve(row: Row, of: Callable[[EvaluationRecord], Curve]) -> Curve | None:
    """A row's curve: of one run with its interval, or the mean over seeds with one standard deviation."""
    curves = [of(evaluation) for evaluation in row.evaluations("best")]
    if not curves or not curves[0].x or any(curve.x != curves[0].x for curve in curves):
        return None
    if len(curves) == 1:
        only = curves[0]
        return Curve(_name(row), only.x, only.y, only.low, only.high)
    spreads = [Spread(values) for values in zip(*(curve.y for curve in curves), strict=True)]
    middle = tuple(spread.mean for spread in spreads)
    half = [spread.std or 0.0 for spread in spreads]
    low = tuple(m - h for m, h in zip(middle, half, strict=True))
    return Curve(_name(row), curves[0].x, middle, low, tuple(m + h for m, h in zip(middle, half, strict=True)))


def _every_run(comparison: Comparison) -> Table:
    shared = comparison.columns
    accuracies = (Column("clean", lambda e: e.clean), *([shared.headline] if shared.headline else shared.columns))
    figures = [(name, column) for name in CHECKPOINTS for column in accuracies]
    columns = ("run", "method", "seed", "in the mean", *(f"{name}: {column.title}" for name, column in figures))
    rows: list[list[Cell | str]] = []
    for row, run, why in comparison.runs:
        cells: list[Cell | str] = [
            run.path.name,
            row.label,
            Cell(str(run.seed), run.seed),
            f"no: {why}" if why else "yes",
        ]
        # Only finished runs have accuracies here: argmax of NaN logits is a class, too.
        shown = run.evaluations if run.state == "done" else {}
        cells += [_accuracy_cell(column.of(shown[name]) if name in shown else None) for name, column in figures]
        rows.append(cells)
    for path, why in comparison.unreadable:
        rows.append([path.name, NOTHING, NOTHING, f"no: {why}", *[NOTHING] * len(figures)])
    return table(columns, rows)


def _accuracy_cell(accuracy: Accuracy | None) -> Cell:
    if accuracy is None:
        return Cell(NOTHING)
    return Cell(f"{100 * accuracy.value:.1f} {interval(accuracy.low, accuracy.high)}", accuracy.value)


def _methods(comparison: Comparison) -> Table:
    """Formula, paper and threat of each method."""
    seen: dict[tuple[str, str], RunFolder] = {}
    for row, run, _ in comparison.runs:
        seen.setdefault((row.method, threat_text(run)), run)
    rows = (
        (method, run.about("method", "formula") or NOTHING, ball, run.about("method", "paper") or NOTHING)
        for (method, ball), run in seen.items()
    )
    return table(("method", "formula", "threat in training", "paper"), rows)


def default_folder(runs: Sequence[Path]) -> Path:
    """`report` in the folder that all the runs share."""
    parents = [set(run.resolve().parents) for run in runs]
    return max(set.intersection(*parents), key=lambda path: len(path.parts)) / "report"
