"""Headline accuracy of a checkpoint: the worst case over its comparable evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atbench.reporting.results import Accuracy, EvaluationRecord, is_random

ASK_RAND = "the network's outputs are random and these attacks do not average over passes (EOT): use `eval=rand`"


@dataclass(frozen=True)
class Headline:
    """Accuracy to quote for a checkpoint.

    accuracy: right under every attack of `members`, example by example; None where none can be quoted. members: the
    evaluations on the most images in the same threat, of the same weights and data; of a random network only those
    with EOT.
    """

    accuracy: Accuracy | None
    members: tuple[EvaluationRecord, ...]

    @property
    def basis(self) -> str:
        return "; ".join(dict.fromkeys(evaluation.basis for evaluation in self.members))


def compute_headline(evaluations: Sequence[EvaluationRecord]) -> Headline:
    """The headline of all evaluations of one checkpoint, in the order they were made."""
    members = comparable(evaluations)
    if any(is_random(evaluation.record) for evaluation in members):
        members = tuple(evaluation for evaluation in members if evaluation.headline)
    if not members:
        return Headline(None, ())
    masks = [(evaluation.outcomes or {}).get("robust") for evaluation in members]
    if any(mask is None or mask.shape != (members[0].n,) for mask in masks):
        return Headline(min((e.robust for e in members), key=lambda accuracy: accuracy.value), members)
    return Headline(Accuracy.of(np.logical_and.reduce([mask for mask in masks if mask is not None])), members)


def comparable(evaluations: Sequence[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
    """The evaluations on the most images, in the threat of the first of these."""
    most = max(evaluation.n for evaluation in evaluations)
    full = [evaluation for evaluation in evaluations if evaluation.n == most]

    def subject(evaluation: EvaluationRecord) -> tuple[object, ...]:
        record = evaluation.record
        return record.get("weights_sha256"), record.get("data_sha256"), evaluation.threat, evaluation.split

    return tuple(evaluation for evaluation in full if subject(evaluation) == subject(full[0]))


def select_evaluation(evaluations: Sequence[EvaluationRecord]) -> EvaluationRecord:
    """The evaluation that represents a checkpoint: of the comparable ones the one with the lowest worst case; for a
    random network, one with EOT first.
    """
    members = comparable(evaluations)
    quotable = [evaluation for evaluation in members if evaluation.headline] or members
    return min(quotable, key=lambda evaluation: evaluation.robust.value)
