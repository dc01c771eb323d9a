"""Comparison as a document, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable
from rich.text import Text

from atbench.reporting.agreement import record_disagreements
from atbench.reporting.audit_report import flag_lines
from atbench.reporting.columns import Column, attack_signature
from atbench.reporting.comparison import Comparison, Row, Spread
from atbench.reporting.comparison_figures import comparison_figures
from atbench.reporting.document import Block, Cell, Code, Document, Heading, Notice, Paragraph, Table, table
from atbench.reporting.results import Accuracy, EvaluationRecord, bound_text
from atbench.reporting.run_facts import threat_text
from atbench.reporting.run_folder import CHECKPOINTS, RunFolder
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

#: The method that others are held against, where there is one row of it.
BASELINE = "pgd_at"
_MOST_NOTICES = 6  # above the table
_SETTINGS = ("settings", "plus", "dataset", "model", "threat")  # columns that may be the same in every row

HOW_TO_READ = (
    "Accuracies in percent. Runs that differ in nothing but the seed are one row: mean ± sample standard deviation "
    "over seeds; with one seed, its 95 % interval in brackets. A column is one attack, the same in every row; the most "
    "robust row is bold. Drop: best − last, in points (robust overfitting), under"
)
PAIRED = (
    "Against {name}: difference of the best checkpoints in points, and p of McNemar's exact test on the examples that "
    "one of the two has right and the other has not; of several common seeds the largest p. Not corrected for the "
    "number of rows."
)


def build_comparison_report(comparison: Comparison, title: str, baseline: str, command: str) -> Document:
    counted = [row for row in comparison.ranked if row.counted]
    main = comparison_table(comparison, baseline)
    under = comparison.columns.words or "no attack: the rows have none in common"
    blocks: list[Block] = [Paragraph(f"{HOW_TO_READ} {under}. {main.note}".strip())]
    notices = [Notice(text) for text in comparison_notices(comparison)]
    blocks += [*notices[:_MOST_NOTICES], main.table]
    if counted:
        blocks += [Heading("Curves"), *comparison_figures(counted, comparison.columns.headline)]
    if notices[_MOST_NOTICES:]:
        blocks += [Heading("More notices", folded=True), *notices[_MOST_NOTICES:]]
    blocks += [Heading("Every run", folded=True), _every_run(comparison)]
    blocks += [Heading("Methods", folded=True), _methods(comparison), Heading("Reproduce"), Code(command)]
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


def terminal_table(comparison: Comparison, baseline: str = BASELINE) -> RichTable:
    shown = comparison_table(comparison, baseline).table
    table = RichTable(*shown.columns, box=None, header_style="dim", pad_edge=False)
    for row in shown.rows:
        table.add_row(*(Text(cell.text, style="bold" if cell.strong else "") for cell in row))
    return table


@dataclass(frozen=True)
class ComparisonTable:
    """The rows by robust accuracy, and what is the same in all of them."""

    table: Table
    note: str


def comparison_table(comparison: Comparison, baseline: str = BASELINE) -> ComparisonTable:
    """The table of a comparison; a column that says the same in every row is left out, and the note says it."""
    columns = comparison.columns
    best = {row.dataset: row for row in reversed(comparison.ranked) if row.rank(columns.headline) >= 0}
    rivals = any(comparison.baseline(row, baseline) not in (None, row) for row in comparison.rows if columns.headline)
    rows = [
        {
            "method": Cell(row.method, strong=best.get(row.dataset) is row and len(comparison.rows) > 1),
            **{name: cell for name, cell in _setting_cells(row)},
            **{name: cell for name, cell in _accuracy_cells(row, columns.columns)},
            "drop": _drop_cell(row.drop(columns.headline)),
            **({f"− {baseline}": _paired_cell(comparison, row, baseline)} if rivals else {}),
            "training": _duration_cell(row.train_seconds),
            "seeds": Cell(_seeds(row), len(row.counted)),
        }
        for row in comparison.ranked
    ]
    names = list(rows[0]) if rows else []
    texts = {name: {row[name].text for row in rows} for name in names}
    same = {name: rows[0][name].text for name in names if name in _SETTINGS and len(texts[name]) == 1 < len(rows)}
    shown = [name for name in names if name not in same and texts[name] - ({"", NOTHING} if ":" in name else {""})]
    note = "; ".join(f"{name} {text}" for name, text in same.items() if text not in ("", NOTHING))
    notes = ([f"The same in every row: {note}."] if note else []) + ([PAIRED.format(name=baseline)] if rivals else [])
    return ComparisonTable(
        Table(tuple(shown), tuple(tuple(row[name] for name in shown) for row in rows), "comparison"), " ".join(notes)
    )


def _setting_cells(row: Row) -> Iterator[tuple[str, Cell]]:
    yield "settings", Cell(", ".join(f"{key}={number_text(value)}" for key, value in row.differs.items()))
    yield "plus", Cell(" + ".join(row.plus) or NOTHING)
    yield from (("dataset", Cell(row.dataset)), ("model", Cell(row.model)))
    eps = row.eps if isinstance(row.eps, (int, float)) else None
    yield "threat", Cell(f"{norm_name(row.norm)} {short_eps(row.eps)}", eps)


def _accuracy_cells(row: Row, columns: Sequence[Column]) -> Iterator[tuple[str, Cell]]:
    for name in CHECKPOINTS:
        yield f"{name}: clean", _figure_cell(row, name, lambda e: e.clean)
        yield from ((f"{name}: {column.title}", _figure_cell(row, name, column.of)) for column in columns)


def _paired_cell(comparison: Comparison, row: Row, baseline: str) -> Cell:
    """`+3.2, p = 0.01` against the baseline on the same data."""
    other, headline = comparison.baseline(row, baseline), comparison.columns.headline
    if other is None or other is row or headline is None:
        return Cell(NOTHING)
    mine, theirs = (each.figure("best", headline.of) for each in (row, other))
    if mine is None or theirs is None:
        return Cell(NOTHING)
    tests = row.paired(other, headline)
    p = max((test.p for test in tests), default=None)
    words = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.2g}"
    return Cell(f"{points(mine.mean - theirs.mean)}{words}", mine.mean - theirs.mean)


def _duration_cell(seconds: Spread | None) -> Cell:
    return Cell(duration(seconds.mean) if seconds else NOTHING, seconds.mean if seconds else None)


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
    return table(columns, rows, "runs")


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
    return table(("method", "formula", "threat in training", "paper"), rows, "methods")


def default_folder(runs: Sequence[Path]) -> Path:
    """`report` in the folder that all the runs share."""
    parents = [set(run.resolve().parents) for run in runs]
    return max(set.intersection(*parents), key=lambda path: len(path.parts)) / "report"
