"""Verification of a record: every field and array recomputed from kept images, configuration and data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atbench.data import Images
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import EvalResults
from atbench.evaluation.evaluator import Plan
from atbench.evaluation.field_checks import FieldCheck, array_checks, arrays_agree, field_checks
from atbench.evaluation.metrics import Array
from atbench.evaluation.recompute import recompute_results
from atbench.evaluation.summary import summarize

#: What no kept image proves: it is only compared with a second copy in the arrays beside the record.
CONSISTENT = (
    "the audit's checks",
    "logits under attack of images that nothing broke",
    "distances of what a minimum-norm attack found outside the ball",
)


def verify_record(
    eval_model: EvalModel,
    images: Images,
    plan: Plan,
    record: Mapping[str, Any],
    outcomes: Mapping[str, Array],
    examples: Mapping[str, Array],
    classes: tuple[str, ...] = (),
    about: Mapping[str, Any] | None = None,
) -> list[FieldCheck]:
    """Compare every field and array with what follows from `images` (the whole split), `plan` (from the configuration)
    and the kept images: legal in their own radius, misclassified as floats and as 8-bit images.

    `outcomes` and `examples` are the arrays of the record's two npz files; `about` are the fields that follow from its
    path and its checkpoint.
    """
    results = recompute_results(eval_model, images, plan, record, outcomes, examples)
    return compare_records(record, outcomes, examples, results, classes, about)


def compare_records(
    record: Mapping[str, Any],
    outcomes: Mapping[str, Array],
    examples: Mapping[str, Array],
    results: EvalResults,
    classes: tuple[str, ...] = (),
    about: Mapping[str, Any] | None = None,
) -> list[FieldCheck]:
    """Field by field and array by array."""
    # Statistics are those of the recorded logits where these are the network's: a bin is no continuous function.
    logits = {key: outcomes[key] for key in ("logits_clean", "logits_adversarial") if key in outcomes}
    same = {key: old for key, old in logits.items() if arrays_agree(key, old, results.outcomes.get(key))}
    recorded = EvalResults(results.facts, {**results.outcomes, **same}, results.examples)
    return [
        *field_checks(record, json.loads(json.dumps({**summarize(recorded, classes), **(about or {})}))),
        *array_checks("", outcomes, results.outcomes),
        *array_checks("examples: ", examples, results.examples),
    ]
