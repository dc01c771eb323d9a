"""Agreement of a record with the arrays beside it: every figure recomputed from per-example outcomes, nothing run.

`atbench eval verify=RUN` checks the adversarial images as well.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from atbench.evaluation.eval_results import EvalResults, robust_after
from atbench.evaluation.field_checks import field_checks
from atbench.evaluation.metrics import Array
from atbench.evaluation.summary import summarize
from atbench.reporting.results import EvaluationRecord

#: Parts of a record that do not follow from per-example outcomes.
FREE = frozenset({"warnings", "audit", "plan"})
MISSING = "nothing"


def record_disagreements(evaluation: EvaluationRecord) -> tuple[str, ...]:
    """Sentences about figures that do not follow from the arrays; empty for every correct record."""
    file, arrays = evaluation.record["outcomes"], evaluation.outcomes
    if arrays is None:
        return (f"{file} is missing: accuracies cannot be checked against per-example outcomes",)
    try:
        return tuple(_disagreements(evaluation, arrays))
    except (KeyError, ValueError, IndexError, TypeError) as fault:
        return (f"{file} does not fit the record ({fault!r}): not every accuracy can be checked",)


def _disagreements(evaluation: EvaluationRecord, arrays: Mapping[str, Array]) -> Iterator[str]:
    record, file, n = evaluation.record, evaluation.record["outcomes"], evaluation.n
    for name in ("label", "clean", "robust"):
        if arrays[name].shape != (n,):
            yield f"{name}: the record has {n} examples, {file} has {arrays[name].size}"
            return
    results = EvalResults(dict(record), dict(arrays), _kept(evaluation))
    if not np.array_equal(results.robust, arrays["robust"]):
        yield f"robust: {file} does not have the worst case of its attacks"
    for attack in evaluation.attacks:
        tried, broken = arrays[f"tried_{attack.name}"], arrays[f"broken_{attack.name}"]
        if (broken & ~tried).any() or (tried & ~arrays["clean"]).any():
            yield f"{attack.name}: {file} marks examples as broken that were not tried or not right"
    surface = dict(zip(arrays.get("surface_eps", np.zeros(0)).tolist(), arrays.get("surface", ()), strict=True))
    for (eps, k, _), mask in zip(evaluation.eps, arrays["eps_robust"], strict=True):
        if eps and not np.array_equal(robust_after(surface[eps], k), mask):
            yield f"eps {eps:.4g}, k = {k}: {file} has two different masks"
    found = summarize(results, [str(row["class"]) for row in record["classes"]["classes"]])
    for check in field_checks(record, found, 1e-6):
        known = MISSING not in (check.recorded, check.recomputed) and check.recomputed is not None
        if known and not check.agrees and check.name.partition(".")[0] not in FREE:
            yield f"{check.name}: the record has {_text(check.recorded)}, {file} says {_text(check.recomputed)}"


def _kept(evaluation: EvaluationRecord) -> dict[str, Array]:
    """Which examples were broken and stay so as 8-bit images, where this was kept; not the images."""
    path = evaluation.path.with_name(evaluation.record.get("examples") or "-")
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as examples:  # reads the members asked for alone
            return {name: examples[name] for name in examples.files if name.endswith((".rows", ".eight"))}
    except (OSError, EOFError, zipfile.BadZipFile) as fault:
        raise ValueError(f"{path.name}: {fault}") from fault


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
