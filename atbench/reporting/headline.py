"""What a run is quoted by, where a checkpoint was evaluated more than once: the worst case over what is comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atbench.reporting.results import Accuracy, EvaluationRecord

ASK_RAND = "the network answers at random, and these attacks do not know it: `eval=rand` averages over its passes"


@dataclass(frozen=True)
class Headline:
    """accuracy: right under every attack of `members`, example by example; None where no figure is one to quote.

    members: the evaluations that it is taken over: of the most images, in the same threat, of the same weights and
    data; of a network that answers at random those alone that average over its passes.
    """

    accuracy: Accuracy | None
    members: tuple[EvaluationRecord, ...]

    @property
    def basis(self) -> str:
        return "; ".join(dict.fromkeys(evaluation.basis for evaluation in self.members))


def compute_headline(found: Sequence[EvaluationRecord]) -> Headline:
    """Of all evaluations of one checkpoint, the first made among them first."""
    members = comparable(found)
    if any(evaluation.random for evaluation in members):
        members = tuple(evaluation for evaluation in members if evaluation.headline)
    if not members:
        return Headline(None, ())
    masks = [(evaluation.outcomes or {}).get("robust") for evaluation in members]
    if any(mask is None or mask.shape != (members[0].n,) for mask in masks):
        return Headline(min((e.robust for e in members), key=lambda accuracy: accuracy.value), members)
    return Headline(Accuracy.of(np.logical_and.reduce([mask for mask in masks if mask is not None])), members)


def comparable(found: Sequence[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
    """Those of the most images, in the threat of the first of these."""
    most = max(evaluation.n for evaluation in found)
    full = [evaluation for evaluation in found if evaluation.n == most]
    return tuple(evaluation for evaluation in full if _like(evaluation, full[0]))


def _like(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    same = all(one.record.get(key) == other.record.get(key) for key in ("weights_sha256", "data_sha256"))
    return same and one.threat == other.threat and one.split == other.split


def select_evaluation(found: Sequence[EvaluationRecord]) -> EvaluationRecord:
    """The one evaluation that stands for a checkpoint: of the comparable ones that with the lowest worst case; where
    the network answers at random, one that knows of it before the others.
    """
    members = comparable(found)
    known = [evaluation for evaluation in members if evaluation.headline] or members
    return min(known, key=lambda evaluation: evaluation.robust.value)
