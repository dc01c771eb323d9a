"""Comparison of runs: those that differ only in the seed are one row, with mean and sample standard deviation.

No run is left out silently: failed and unfinished runs are listed with the reason, and so is a seed that collapsed.
Accuracies come from the evaluation records only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atbench.errors import DataError
from atbench.reporting import run_folder
from atbench.reporting.columns import Column, Columns, accuracy_columns, attack_signature
from atbench.reporting.paired import Paired, mcnemar
from atbench.reporting.results import Accuracy, EvaluationRecord
from atbench.reporting.run_folder import CHECKPOINTS, RunFolder
from atbench.reporting.wording import flatten, number_text

# A run collapsed if last's robust accuracy is below this share of best's (catastrophic overfitting).
COLLAPSE = 0.5

# What may differ between runs of one row.
_INCIDENTAL = ("seed", "name", "runs", "resume", "device", "threads", "logger", "hydra")
_INCIDENTAL_TRAIN = ("train.time_limit", "train.checkpoint")
# Keys whose difference between methods is shown.
_PROTOCOL = ("train.", "eval.", "evaluation.", "attack.eps", "attack.norm", "dataset.")
# Optimizers of a method's further networks are part of the method; extra data is shown where there is any.
_ALGORITHM = "train.groups."
_POOL = "train.extra_data."


@dataclass(frozen=True)
class Spread:
    """Mean over the seeds of a row, and sample standard deviation from two seeds on."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(eq=False)
class Row:
    """Runs that differ only in the seed."""

    method: str
    dataset: str
    model: str
    plus: tuple[str, ...]
    norm: str
    eps: object
    flat: dict[str, object]
    counted: list[RunFolder] = field(default_factory=list)
    left_out: list[tuple[RunFolder, str]] = field(default_factory=list)
    differs: dict[str, object] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, additions and settings that differ from other rows."""
        plus = f" + {' + '.join(self.plus)}" if self.plus else ""
        differs = ", ".join(f"{key}={number_text(value)}" for key, value in self.differs.items())
        return f"{self.method}{plus}" + (f" ({differs})" if differs else "")

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.counted]

    def evaluations(self, checkpoint: str) -> list[EvaluationRecord]:
        """The records of one checkpoint, one for each seed; empty unless every seed has one."""
        records = [run.evaluations[checkpoint] for run in self.counted if checkpoint in run.evaluations]
        return records if len(records) == len(self.counted) else []

    def figure(self, checkpoint: str, of: Callable[[EvaluationRecord], Accuracy | None]) -> Spread | None:
        values = [of(evaluation) for evaluation in self.evaluations(checkpoint)]
        return Spread(tuple(v.value for v in values if v is not None)) if values and None not in values else None

    def robust(self, checkpoint: str) -> Spread | None:
        """The worst case over all attacks that this row ran."""
        return self.figure(checkpoint, lambda evaluation: evaluation.headline)

    @property
    def most_steps(self) -> int | None:
        """The largest k of the sweep, the same for all runs of a row."""
        return next((e.strongest for run in self.counted for e in run.evaluations.values()), None)

    def rank(self, headline: Column | None) -> float:
        """Robust accuracy to sort by; -1 where there is none."""
        spreads = [self.figure(name, headline.of) for name in CHECKPOINTS] if headline else []
        return next((spread.mean for spread in spreads if spread), -1.0)

    def paired(self, other: Row, headline: Column) -> list[Paired]:
        """McNemar's test against another row, for each seed that both have, on the best checkpoints' examples."""
        found = []
        mine, theirs = ({run.seed: run.evaluations.get("best") for run in row.counted} for row in (self, other))
        for seed in mine.keys() & theirs.keys():
            pair = [evaluation for evaluation in (mine[seed], theirs[seed]) if evaluation is not None]
            data = {(each.record["data_sha256"], each.split, each.n, each.threat) for each in pair}
            masks = [mask for each in pair if (mask := headline.mask(each)) is not None]
            if len(masks) == 2 and len(data) == 1 and masks[0].shape == masks[1].shape:
                found.append(mcnemar(*masks))
        return found

    @property
    def train_passes(self) -> float | None:
        """Forward passes of a training for each image, at least; None where the runs do not say."""
        costs = {run.environment.get("forward_cost") for run in self.counted}
        epochs = {len(run.rows) for run in self.counted}
        known = len(costs) == len(epochs) == 1 and None not in costs
        return float(costs.pop()) * epochs.pop() if known else None  # type: ignore[arg-type]

    def drop(self, headline: Column | None) -> Spread | None:
        """Best minus last, seed by seed: robust overfitting (Rice et al. 2020)."""
        best, last = (self.figure(name, headline.of) if headline else None for name in CHECKPOINTS)
        if len({evaluation.n for name in CHECKPOINTS for evaluation in self.evaluations(name)}) > 1:
            return None
        return Spread(tuple(b - a for b, a in zip(best.values, last.values, strict=True))) if best and last else None

    @property
    def train_seconds(self) -> Spread | None:
        values = [run.train_seconds for run in self.counted]
        return Spread(tuple(v for v in values if v is not None)) if values and None not in values else None

    @property
    def collapsed(self) -> list[tuple[int | None, float, float]]:
        """(seed, worst case of best, of last) of every seed whose last epoch lost more than half of it."""
        best, last = self.robust("best"), self.robust("last")
        signatures = {attack_signature(evaluation) for name in CHECKPOINTS for evaluation in self.evaluations(name)}
        if best is None or last is None or len(signatures) > 1:
            return []
        pairs = zip(self.seeds, best.values, last.values, strict=True)
        return [(seed, top, end) for seed, top, end in pairs if end < COLLAPSE * top]


@dataclass(frozen=True)
class Comparison:
    rows: tuple[Row, ...]
    unreadable: tuple[tuple[Path, str], ...]

    @property
    def counted(self) -> list[EvaluationRecord]:
        """Every evaluation behind a mean."""
        return [e for row in self.rows for run in row.counted for e in run.evaluations.values()]

    @property
    def columns(self) -> Columns:
        return accuracy_columns(self.counted)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows of a data set from the most robust to the least, by name where no attack is common to all; those
        without an accuracy at the end.
        """
        headline = self.columns.headline
        return tuple(sorted(self.rows, key=lambda row: (not row.counted, row.dataset, -row.rank(headline))))

    def baseline(self, row: Row, name: str) -> Row | None:
        """The one row on the same data whose method or label is `name`."""
        same = [each for each in self.rows if each.counted and each.dataset == row.dataset]
        named = [each for each in same if each.label == name] or [each for each in same if each.method == name]
        return named[0] if len(named) == 1 else None

    @property
    def runs(self) -> list[tuple[Row, RunFolder, str]]:
        """Every run with its row and, where it is not in the mean, the reason."""
        return [
            (row, run, why) for row in self.rows for run, why in (*((run, "") for run in row.counted), *row.left_out)
        ]


def compare(paths: Iterable[Path]) -> Comparison:
    """Read and group the runs in `paths`."""
    rows: dict[tuple[object, ...], Row] = {}
    unreadable = []
    for path in sorted(paths):
        try:
            run = run_folder.read_run(path)
        except DataError as fault:
            unreadable.append((path, str(fault)))
            continue
        names = (run.name("method"), run.name("dataset"), run.name("model"))
        attack = run.config.get("attack") or {}
        new = Row(*names, run.plus, str(attack.get("norm")), attack.get("eps"), _settings(run))
        row = rows.setdefault((*_names(new), repr(sorted(new.flat.items()))), new)
        if run.state == "done" and run.evaluations:
            row.counted.append(run)
        else:
            row.left_out.append((run, run.status_line if run.state != "done" else "done, but not evaluated"))
    merged = _merge_unevaluated(list(rows.values()))
    for row in merged:
        _keep_newest_run(row)
    _set_differences(merged)
    merged.sort(key=lambda row: (row.dataset, row.model, row.method, row.plus, row.label))
    return Comparison(tuple(merged), tuple(unreadable))


def _settings(run: RunFolder) -> dict[str, object]:
    """Everything that the rows are grouped by, flat: configuration and evaluation settings, without seeds."""
    kept = {key: value for key, value in run.config.items() if key not in _INCIDENTAL}
    flat = {
        key: value
        for key, value in flatten(kept).items()
        if "about" not in key.split(".") and not key.startswith(_INCIDENTAL_TRAIN) and key.rpartition(".")[2] != "seed"
    }
    # The settings are those of the records, not of the plan; checkpoints may have been evaluated differently since.
    by_name = {name: evaluation.settings for name, evaluation in run.evaluations.items()}
    for key in dict.fromkeys(key for settings in by_name.values() for key in settings):
        values = {name: settings.get(key) for name, settings in by_name.items()}
        first, *others = values.values()
        apart = ", ".join(f"{number_text(value)} ({name})" for name, value in values.items())
        flat[f"evaluation.{key}"] = first if all(value == first for value in others) else apart
    return flat


def _merge_unevaluated(rows: Sequence[Row]) -> list[Row]:
    """Merge a row without evaluations, and so without their settings, into the one row that it otherwise equals."""

    def key(row: Row) -> tuple[object, ...]:
        return *_names(row), {k: v for k, v in row.flat.items() if not k.startswith("evaluation.")}

    merged = [row for row in rows if row.counted]
    for row in rows:
        if not row.counted:
            same = [other for other in merged if key(other) == key(row)]
            if len(same) == 1:
                same[0].left_out.extend(row.left_out)
            else:
                merged.append(row)
    return merged


def _names(row: Row) -> tuple[object, ...]:
    return row.method, row.dataset, row.model, row.plus


def _keep_newest_run(row: Row) -> None:
    """Count a seed that ran twice once, with its newest run: two equal runs would lower the spread."""
    newest: dict[int | None, RunFolder] = {}
    for run in sorted(row.counted, key=lambda run: (str(run.status.get("started", "")), run.path.name)):
        newest[run.seed] = run
    for run in [run for run in row.counted if newest[run.seed] is not run]:
        row.counted.remove(run)
        row.left_out.append((run, f"seed {run.seed} ran again: {newest[run.seed].path.name} counts"))


def _set_differences(rows: Sequence[Row]) -> None:
    """Set `differs` of each row: settings that differ among rows of the same names, and unequal protocols."""
    for row in rows:
        namesakes = [other for other in rows if _names(other) == _names(row)]
        rivals = [other for other in rows if other.dataset == row.dataset and other.counted]
        for key in sorted({key for other in (*namesakes, *rivals) for key in other.flat}):
            value = row.flat.get(key)
            protocol = row.counted and key.startswith(_PROTOCOL) and not key.startswith(_ALGORITHM)
            shown = protocol and (bool(value) or not key.startswith(_POOL))
            if ".attacks." in key and key not in row.flat:
                continue
            if _varies(namesakes, key) or (shown and _varies(rivals, key)):
                row.differs[key] = value


def _varies(rows: Sequence[Row], key: str) -> bool:
    """Whether a setting has more than one value; of evaluation settings only where there was an evaluation, and of an
    attack's only where it ran: the list of attacks says where it did not.
    """
    evaluated = [row for row in rows if row.counted or not key.startswith("evaluation.")]
    evaluated = [row for row in evaluated if ".attacks." not in key or key in row.flat]
    return len({repr(row.flat.get(key)) for row in evaluated}) > 1
