"""Agreement of a record with its masks: every accuracy recomputed from the per-example outcomes, without running
anything; `atbench eval verify=RUN` checks the adversarial images as well.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator

import numpy as np

from atbench.reporting.results import Array, EvaluationRecord

NEVER = -1  # in a mask of first broken steps: nothing broke this example

Claim = tuple[str, float, Array]


def record_disagreements(evaluation: EvaluationRecord) -> tuple[str, ...]:
    """Sentences about accuracies that are not the mean of their masks; empty for every correct record."""
    file, arrays = evaluation.record["outcomes"], evaluation.outcomes
    if arrays is None:
        return (f"{file} is missing: accuracies cannot be checked against per-example outcomes",)
    lines = []
    try:
        for name, value, mask in _claims(evaluation, arrays):
            if mask.shape != (evaluation.n,) and not name.startswith(("class ", "reject ", "member ")):
                lines.append(f"{name}: the record has {evaluation.n} examples, {file} has {mask.size}")
            elif not math.isclose(value, float(mask.mean()), abs_tol=1e-6):
                lines.append(f"{name}: the record has {value:.6f}, the mask in {file} has mean {mask.mean():.6f}")
        for attack in evaluation.attacks:
            tried, broken = arrays[f"tried_{attack.name}"], arrays[f"broken_{attack.name}"]
            if (broken & ~tried).any() or (tried & ~arrays["clean"]).any():
                lines.append(f"{attack.name}: {file} marks examples as broken that were not tried or not right")
    except (KeyError, ValueError, IndexError) as fault:
        lines.append(f"{file} does not fit the record ({fault!r}): not every accuracy can be checked")
    return tuple(lines)


def robust_mask(broken_at: Array, k: int | None = None) -> Array:
    """Booleans: right after k steps (None: all), from first broken steps (0: wrong without an attack)."""
    never: Array = broken_at == NEVER
    return never if k is None else never | (broken_at > k)


def _claims(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    """(name, value in the record, mask that it must be the mean of)."""
    yield "clean", evaluation.clean.value, arrays["clean"]
    yield "worst case", evaluation.robust.value, arrays["robust"]
    robust = arrays["clean"]
    if evaluation.steps:
        yield from _sweep(evaluation, arrays)
        robust = robust & robust_mask(arrays["broken_at"])
    for attack in evaluation.attacks:
        tried, broken = arrays[f"tried_{attack.name}"], arrays[f"broken_{attack.name}"]
        yield f"examples that {attack.name} ran on", attack.tried / evaluation.n, tried
        yield f"examples that {attack.name} broke", attack.broken / evaluation.n, broken
        if attack.alone is not None:
            yield attack.name, attack.alone.value, arrays["clean"] & ~broken
        robust = robust & ~broken
        yield f"after {attack.name}", attack.after.value, robust
    yield f"worst case over {', '.join(evaluation.record['robust']['attacks'])}", evaluation.robust.value, robust
    yield from _eight_bit(evaluation, arrays)
    for norm, (_, _, accuracy) in evaluation.norms.items():
        yield norm, accuracy.value, robust_mask(arrays[f"broken_at_{norm}"])
    yield from _rejected(evaluation, arrays)
    yield from _transferred(evaluation, arrays)
    yield from _distorted(evaluation, arrays)
    for position, row in enumerate(evaluation.record["classes"]["classes"]):
        if row["n"]:
            yield f"class {row['class']}", row["accuracy"], arrays["robust"][arrays["label"] == position]
    for name, calibration in evaluation.record["calibration"].items():
        if calibration is not None:
            right = arrays[f"logits_{name}"].argmax(axis=1) == arrays["label"]
            yield f"accuracy of the {name} calibration", calibration["accuracy"], right


def _sweep(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    for k, accuracy in evaluation.steps.items():
        yield f"PGD-{k}", accuracy.value, robust_mask(arrays["broken_at"], k)
    for (eps, _, accuracy), mask in zip(evaluation.eps, arrays["eps_robust"], strict=True):
        yield f"ε = {eps:.4g}", accuracy.value, mask
    surface = dict(zip(arrays["surface_eps"].tolist(), arrays["surface"], strict=True))
    for eps, k, accuracy in evaluation.eps:
        if eps:
            yield f"ε = {eps:.4g}, k = {k}", accuracy.value, robust_mask(surface[eps], k)


def _rejected(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    """The shares at a rejection's threshold, from clean logits and the confidence of wrong answers under attack."""
    if not (reject := evaluation.record.get("reject")):
        return
    right, tau = arrays["clean"], reject["threshold"]
    scores = arrays["logits_clean"].astype(np.float64)
    accepted = 1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1) >= tau
    broken = ~np.isnan(arrays["confidence_adversarial"])
    fooled = broken & (arrays["confidence_adversarial"] >= tau)
    for name, mask in (
        ("tpr", accepted[right]),
        ("fpr", accepted[~right]),
        ("accepted", accepted),
        ("adversarial", fooled[right & broken]),
        ("error", ~right[accepted]),
        ("robust_error", ((~right & accepted) | fooled)[accepted | fooled]),
    ):
        if reject[name]["n"] != len(mask):
            yield f"reject {name}: n", float(reject[name]["n"]), np.full(1, len(mask))
        elif len(mask):
            yield f"reject {name}", reject[name]["share"], mask
    yield "reject robust_error without rejection", reject["without"]["robust_error"]["share"], ~right | broken


def _transferred(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    """Accuracies of an ensemble's members on images made on one another."""
    if not (members := evaluation.record.get("members")):
        return
    shared: Array = np.all(arrays["members_right"], axis=0)
    yield "images that all members classify right", members["n"] / evaluation.n, shared
    for number, row in enumerate(members["robust"]):
        for other, entry in enumerate(row):
            mask = ~arrays["members_fooled"][number, other][shared]
            yield f"member {other} on images made on member {number}", entry["accuracy"], mask


def _distorted(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    """Accuracies under unforeseen distortions."""
    for attack, masks in zip(
        (evaluation.record.get("unforeseen") or {"attacks": ()})["attacks"],
        arrays.get("unforeseen_robust", ()),
        strict=True,
    ):
        for entry, mask in zip(attack["sizes"], masks, strict=True):
            yield f"{attack['name']}, ε = {entry['eps']:g}", entry["accuracy"], mask


def _eight_bit(evaluation: EvaluationRecord, arrays: dict[str, Array]) -> Iterator[Claim]:
    """The worst case with 8-bit images, where the adversarial images were kept."""
    path = evaluation.path.with_name(evaluation.record.get("examples") or "-")
    if not path.is_file():
        return
    plan = evaluation.record["plan"]
    names = [f"pgd.{at}" for at, multiple in enumerate(plan["multiples"]) if multiple <= 1]
    robust = arrays["clean"].copy()
    try:
        with np.load(path, allow_pickle=False) as examples:  # reads the members asked for, not the images
            for name in (*names, *(attack.name for attack in evaluation.attacks)):
                robust[examples[f"{name}.rows"][examples[f"{name}.eight"]]] = False
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        robust = np.zeros(0, bool)  # of no example: reported as such
    yield "worst case, 8-bit images", evaluation.eight_bit.value, robust
