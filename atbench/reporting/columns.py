"""Which robust accuracies of several evaluations may stand in one column: those of one and the same attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atbench.reporting.results import AUTOATTACK, Accuracy, EvaluationRecord, attack_names
from atbench.reporting.wording import number_text

HEADLINE_STEPS = 20
# What makes two evaluations' PGD-k different attacks; the step is given as a share of ε.
_SWEEP = ("objective", "restarts", "start", "step")

Find = Callable[[EvaluationRecord], Accuracy | None]
Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Column:
    """A column: `of` gives an evaluation's figure, None where it was not attacked so."""

    title: str
    of: Find


@dataclass(frozen=True)
class Columns:
    """All columns, weaker attacks first. headline: the one by which rows are ranked and best is held against last, None
    where the evaluations have no attack in common. words: what its title stands for.
    """

    columns: tuple[Column, ...]
    headline: Column | None
    words: str


def accuracy_columns(evaluations: Sequence[EvaluationRecord]) -> Columns:
    """The worst case over all attacks where all evaluations ran the same ones; PGD-k beside it, or in its place."""
    columns = tuple(_pgd(evaluations))
    if not evaluations:
        return Columns((), None, "")
    if any(evaluation.headline is None for evaluation in evaluations):
        return Columns(columns, None, "nothing, for a network here answers at random and was not attacked as one")
    if len({attack_signature(evaluation) for evaluation in evaluations}) > 1:
        shared = [m for m in columns if all(m.of(evaluation) is not None for evaluation in evaluations)]
        headline = shared[-1] if shared else None
        return Columns(columns, headline, headline.title if headline else "")
    first = evaluations[0]
    if not first.attacks:
        return Columns(columns, columns[-1] if columns else None, first.basis)
    names = attack_names(first.record)
    worst = Column(names[0] if names == [AUTOATTACK] else "worst case", lambda evaluation: evaluation.headline)
    return Columns((*columns, worst), worst, first.basis)


def attack_signature(evaluation: EvaluationRecord) -> tuple[object, ...]:
    """What an evaluation attacked with, for comparing it with another's; the radius is no part of it."""
    k = evaluation.record["plan"]["threat"]["steps"] if evaluation.steps else None
    others = tuple((attack.name, attack.words) for attack in evaluation.attacks)
    return k, _options(evaluation), others, evaluation.record["plan"]["sequential"] if others else None


def _options(evaluation: EvaluationRecord) -> Options:
    """The settings of the sweep's PGD besides k; empty without a sweep."""
    if not evaluation.steps:
        return ()
    attack = evaluation.attack
    # At a radius of 0 there is no attack, and every length of step is the same.
    share = attack["step_size"] / attack["eps"] if attack["eps"] else 0.0
    values: Mapping[str, object] = {**attack, "step": round(share, 6)}
    return tuple((name, values[name]) for name in _SWEEP)


def _pgd(evaluations: Sequence[EvaluationRecord]) -> list[Column]:
    """PGD-20 and each evaluation's largest k, one column for each way of running PGD."""
    swept = [evaluation for evaluation in evaluations if evaluation.steps]
    ways = sorted({_options(evaluation) for evaluation in swept}, key=repr)
    largest = {evaluation.strongest for evaluation in swept}
    return [
        Column(f"PGD-{k}{_apart(way, ways)}", _finder(k, way))
        for k in sorted({HEADLINE_STEPS, *(k for k in largest if k is not None)})
        for way in ways
        if any(_options(evaluation) == way and k in evaluation.steps for evaluation in swept)
    ]


def _finder(k: int, way: Options) -> Find:
    return lambda evaluation: evaluation.steps.get(k) if _options(evaluation) == way else None


def _apart(way: Options, ways: Sequence[Options]) -> str:
    """What tells one way of running PGD from the others: ` (restarts=10)`."""
    differing = [at for at, option in enumerate(way) if any(other[at] != option for other in ways)]
    words = ", ".join(f"{way[at][0]}={number_text(way[at][1])}" for at in differing)
    return f" ({words})" if words else ""
