"""Columns of a comparison: robust accuracies under the same attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atbench.evaluation.eval_results import robust_after
from atbench.reporting.results import AUTOATTACK, Accuracy, Array, EvaluationRecord, attack_names
from atbench.reporting.wording import number_text

HEADLINE_STEPS = 20
# What makes two evaluations' PGD-k different attacks; the step is given as a share of ε.
_SWEEP = ("objective", "restarts", "start", "step")

Find = Callable[[EvaluationRecord], Accuracy | None]
Mask = Callable[[EvaluationRecord], Array | None]
Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Column:
    """A column: `of` gives an evaluation's accuracy, None where it was not attacked so, and `mask` the examples (n,)
    behind it, None where they were not kept.
    """

    title: str
    of: Find
    mask: Mask = lambda evaluation: None


@dataclass(frozen=True)
class Columns:
    """All columns, weaker attacks first. headline: the column that rows are ranked by and the drop is measured in, None
    where the evaluations have no attack in common. words: its attacks.
    """

    columns: tuple[Column, ...]
    headline: Column | None
    words: str


def accuracy_columns(evaluations: Sequence[EvaluationRecord]) -> Columns:
    """PGD-k and, where all evaluations ran the same attacks, the worst case over them."""
    columns = tuple(_pgd(evaluations))
    if not evaluations:
        return Columns((), None, "")
    if any(evaluation.headline is None for evaluation in evaluations):
        return Columns(columns, None, "no column: a network answers at random and was not attacked with EOT")
    if len({attack_signature(evaluation) for evaluation in evaluations}) > 1:
        shared = [m for m in columns if all(m.of(evaluation) is not None for evaluation in evaluations)]
        headline = shared[-1] if shared else None
        return Columns(columns, headline, headline.title if headline else "")
    first = evaluations[0]
    if not first.attacks:
        return Columns(columns, columns[-1] if columns else None, first.basis)
    names = attack_names(first.record)
    worst = Column(names[0] if names == [AUTOATTACK] else "worst case", lambda evaluation: evaluation.headline, _robust)
    return Columns((*columns, worst), worst, first.basis)


def attack_signature(evaluation: EvaluationRecord) -> tuple[object, ...]:
    """What an evaluation attacked with, to compare it with another's; without the radius."""
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
    """PGD-20 and each evaluation's largest k, one column for each setting of PGD."""
    swept = [evaluation for evaluation in evaluations if evaluation.steps]
    settings = sorted({_options(evaluation) for evaluation in swept}, key=repr)
    largest = {evaluation.strongest for evaluation in swept}
    return [
        Column(f"PGD-{k}{_difference(setting, settings)}", _pgd_accuracy(k, setting), _pgd_mask(k))
        for k in sorted({HEADLINE_STEPS, *(k for k in largest if k is not None)})
        for setting in settings
        if any(_options(evaluation) == setting and k in evaluation.steps for evaluation in swept)
    ]


def _pgd_accuracy(k: int, setting: Options) -> Find:
    return lambda evaluation: evaluation.steps.get(k) if _options(evaluation) == setting else None


def _robust(evaluation: EvaluationRecord) -> Array | None:
    return (evaluation.outcomes or {}).get("robust")


def _pgd_mask(k: int) -> Mask:
    def mask(evaluation: EvaluationRecord) -> Array | None:
        broken_at = (evaluation.outcomes or {}).get("broken_at")
        return None if broken_at is None or k not in evaluation.steps else robust_after(broken_at, k)

    return mask


def _difference(setting: Options, settings: Sequence[Options]) -> str:
    """The options by which one setting of PGD differs from the others: ` (restarts=10)`."""
    differing = [at for at, option in enumerate(setting) if any(other[at] != option for other in settings)]
    words = ", ".join(f"{setting[at][0]}={number_text(setting[at][1])}" for at in differing)
    return f" ({words})" if words else ""
