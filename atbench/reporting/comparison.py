"""Several runs side by side: runs that differ in nothing but the seed are one row, with mean and sample standard
deviation.

No run is dropped and none is picked: what failed or is unfinished is listed with its reason, and a seed that collapsed
is named beside the mean it drags down. Numbers come from the evaluation records only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atbench.errors import DataError
from atbench.reporting import run_folder as run_folders
from atbench.reporting.columns import Column, Columns, accuracy_columns, attack_signature
from atbench.reporting.results import Accuracy, EvaluationRecord
from atbench.reporting.run_folder import CHECKPOINTS, RunFolder
from atbench.reporting.wording import flatten, number_text

# Robust accuracy of the last epoch below this share of the best checkpoint's: a collapse (catastrophic overfitting),
# not noise.
COLLAPSE = 0.5

# What may differ between runs that are "the same but for the seed": who ran it, where, for how long at a time.
_INCIDENTAL = ("seed", "name", "runs", "resume", "device", "threads", "logger", "hydra")
_INCIDENTAL_TRAIN = ("train.time_limit", "train.checkpoint")
# A difference in these between two methods is one that the reader of a comparison has to know.
_PROTOCOL = ("train.", "eval.", "evaluation.", "attack.eps", "attack.norm", "dataset.")
# But optimizers of a method's further networks are its algorithm, and a pool is told of where there is one.
_ALGORITHM = "train.groups."
_POOL = "train.extra_data."


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds of a row: their mean, and the sample standard deviation where there are two or more."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def as_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass
class Row:
    """Runs of one method, data set, network and set of additions, alike in every setting but the seed."""

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
        """The shortest name that tells this row from the others of a comparison."""
        plus = f" + {' + '.join(self.plus)}" if self.plus else ""
        differs = ", ".join(f"{key}={number_text(value)}" for key, value in self.differs.items())
        return f"{self.method}{plus}" + (f" ({differs})" if differs else "")

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.counted]

    def evaluations(self, checkpoint: str) -> list[EvaluationRecord]:
        """The records of one checkpoint, one a seed; none unless all have it: a mean over some is not the mean."""
        found = [run.evaluations[checkpoint] for run in self.counted if checkpoint in run.evaluations]
        return found if len(found) == len(self.counted) else []

    def figure(self, checkpoint: str, of: Callable[[EvaluationRecord], Accuracy | None]) -> Spread | None:
        """An accuracy over the seeds."""
        values = [of(evaluation) for evaluation in self.evaluations(checkpoint)]
        return Spread(tuple(v.value for v in values if v is not None)) if values and None not in values else None

    def robust(self, checkpoint: str) -> Spread | None:
        """The worst case over all attacks that this row ran, whatever the others ran."""
        return self.figure(checkpoint, lambda evaluation: evaluation.headline)

    @property
    def most_steps(self) -> int | None:
        """The largest k of the sweep; one for all runs of a row, because the sweep is part of what makes a row."""
        return next((e.strongest for run in self.counted for e in run.evaluations.values()), None)

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
        """Seed, worst case of best and of last, for every seed whose last epoch lost more than half of it."""
        best, last = self.robust("best"), self.robust("last")
        ways = {attack_signature(evaluation) for name in CHECKPOINTS for evaluation in self.evaluations(name)}
        if best is None or last is None or len(ways) > 1:
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
    def measures(self) -> Columns:
        """The columns of robust accuracies."""
        return accuracy_columns(self.counted)

    @property
    def runs(self) -> list[tuple[Row, RunFolder, str]]:
        """Every run with its row and, where it is not in the mean, the reason."""
        return [
            (row, run, why) for row in self.rows for run, why in (*((run, "") for run in row.counted), *row.left_out)
        ]


def compare(paths: Iterable[Path]) -> Comparison:
    """Read and group the runs in `paths`, in the order of their names."""
    rows: dict[tuple[object, ...], Row] = {}
    unreadable = []
    for path in sorted(paths):
        try:
            run = run_folders.read_run(path)
        except DataError as fault:
            unreadable.append((path, str(fault)))
            continue
        fresh = _row(run)
        row = rows.setdefault((fresh.method, fresh.dataset, fresh.model, fresh.plus, _key(fresh.flat)), fresh)
        why = _not_counted(run)
        if why:
            row.left_out.append((run, why))
        else:
            row.counted.append(run)
    found = _adopt(list(rows.values()))
    for row in found:
        _one_run_a_seed(row)
    _tell_apart(found)
    return Comparison(
        tuple(sorted(found, key=lambda row: (row.dataset, row.model, row.method, row.plus, row.label))),
        tuple(unreadable),
    )


def _key(flat: dict[str, object]) -> str:
    return repr(sorted(flat.items(), key=lambda item: item[0]))


def _row(run: RunFolder) -> Row:
    names = (run.name("method"), run.name("dataset"), run.name("model"))
    attack = run.config.get("attack") or {}
    return Row(*names, run.plus, str(attack.get("norm")), attack.get("eps"), _settings(run))


def _settings(run: RunFolder) -> dict[str, object]:
    """Everything that makes a run the experiment it is, flat: its configuration, and how its checkpoints were
    evaluated.

    Seeds are what a row averages over, wherever the configuration repeats them.
    """
    kept = {key: value for key, value in run.config.items() if key not in _INCIDENTAL}
    flat = {
        key: value
        for key, value in flatten(kept).items()
        if "about" not in key.split(".") and not key.startswith(_INCIDENTAL_TRAIN) and key.rpartition(".")[2] != "seed"
    }
    # The settings are those of the records, not of the plan; checkpoints may have been evaluated differently since.
    given = {name: evaluation.settings for name, evaluation in run.evaluations.items()}
    for key in dict.fromkeys(key for settings in given.values() for key in settings):
        values = {name: settings.get(key) for name, settings in given.items()}
        first, *others = values.values()
        apart = ", ".join(f"{number_text(value)} ({name})" for name, value in values.items())
        flat[f"evaluation.{key}"] = first if all(value == first for value in others) else apart
    return flat


def _not_counted(run: RunFolder) -> str:
    """Why a run is not in its row's mean; empty if it is."""
    if run.state != "done":
        return run.standing
    return "" if run.evaluations else "done, but not evaluated"


def _adopt(rows: Sequence[Row]) -> list[Row]:
    """A run without evaluation has no evaluation settings: it joins the one row that it otherwise equals, if any."""
    planned = [{k: v for k, v in row.flat.items() if not k.startswith("evaluation.")} for row in rows]
    kept, homes = [], []
    for row, plan in zip(rows, planned, strict=True):
        if row.counted:
            kept.append(row)
            homes.append(plan)
    for row, plan in zip(rows, planned, strict=True):
        if row.counted:
            continue
        same = [home for home, other in zip(kept, homes, strict=True) if other == plan and _names(home) == _names(row)]
        if len(same) == 1:
            same[0].left_out.extend(row.left_out)
        else:
            kept.append(row)
            homes.append(plan)
    return kept


def _names(row: Row) -> tuple[object, ...]:
    return row.method, row.dataset, row.model, row.plus


def _one_run_a_seed(row: Row) -> None:
    """A seed that ran twice counts once, with its newest run: two equal runs would make the spread look small."""
    newest: dict[int | None, RunFolder] = {}
    for run in sorted(row.counted, key=lambda run: (str(run.status.get("started", "")), run.path.name)):
        newest[run.seed] = run
    for run in [run for run in row.counted if newest[run.seed] is not run]:
        row.counted.remove(run)
        row.left_out.append((run, f"seed {run.seed} ran again: {newest[run.seed].path.name} counts"))


def _tell_apart(rows: Sequence[Row]) -> None:
    """Note in each row what a reader needs: what tells rows of the same names apart, and any unequal protocol."""
    for row in rows:
        namesakes = [other for other in rows if _names(other) == _names(row)]
        rivals = [other for other in rows if other.dataset == row.dataset and other.counted]
        for key in sorted({key for other in (*namesakes, *rivals) for key in other.flat}):
            value = row.flat.get(key)
            protocol = row.counted and key.startswith(_PROTOCOL) and not key.startswith(_ALGORITHM)
            told = protocol and (bool(value) or not key.startswith(_POOL))
            if ".attacks." in key and key not in row.flat:
                continue
            if _varies(namesakes, key) or (told and _varies(rivals, key)):
                row.differs[key] = value


def _varies(rows: Sequence[Row], key: str) -> bool:
    """Whether a setting has more than one value; of evaluation settings only where there was an evaluation, and of an
    attack's only where it ran: the list of attacks says where it did not.
    """
    asked = [row for row in rows if row.counted or not key.startswith("evaluation.")]
    asked = [row for row in asked if ".attacks." not in key or key in row.flat]
    return len({repr(row.flat.get(key)) for row in asked}) > 1
