"""Summary of an evaluation: every figure of its record, from the columns of its results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from atbench.evaluation import metrics
from atbench.evaluation.attack_limits import evaluation_warnings
from atbench.evaluation.audit.verdicts import Check, audit_verdict
from atbench.evaluation.eval_results import EvalResults, robust_after
from atbench.evaluation.metrics import Array, corruption_figures, mask_accuracy
from atbench.evaluation.rejection import rejection_figures
from atbench.evaluation.unforeseen_calibrations import unforeseen_figures
from atbench.interval import accuracy_figures


def summarize(results: EvalResults, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The record: accuracies, costs, statistics, the audit's verdict (docs/run_folder.md). `classes`: their names."""
    facts, columns = results.facts, results.outcomes
    plan, label, robust = facts["plan"], columns["label"], results.robust
    threat, n = plan["threat"], len(label)
    # Right under the main threat's attacks, and under PGD in every other norm.
    swept = [name for name in plan["norms"] if f"broken_at_{name}" in columns]
    norms: dict[str, Array] = {name: robust_after(columns[f"broken_at_{name}"]) for name in swept}
    checks = [Check(**json.loads(str(text))) for text in columns.get("audit", ())]
    clean, adversarial = columns["logits_clean"], columns.get("logits_adversarial")
    corrupted = facts.get("corruptions")
    return {
        "n": n,
        "of": facts.get("of") or n,  # records of earlier versions lack it
        "random": facts.get("random"),
        "threat": {"norm": threat["norm"], "eps": threat["eps"]},
        "plan": plan,
        "clean": mask_accuracy(results.clean),
        "robust": {**mask_accuracy(robust), "attacks": results.attack_names, "eight_bit": _eight_bit(results)},
        "bound": "upper",
        "attack": {"name": "pgd", **{key: value for key, value in threat.items() if key != "steps"}},
        "steps": [{"k": k, **mask_accuracy(mask)} for k, mask in step_masks(results)],
        "eps": [
            {"eps": float(eps), "k": plan["eps_steps"], **mask_accuracy(mask)}
            for eps, mask in zip(columns["eps_grid"], columns["eps_robust"], strict=True)
        ],
        "attacks": list(_attacks(results)),
        "norms": {
            name: {"eps": plan["norms"][name]["eps"], "k": plan["norms"][name]["steps"], **mask_accuracy(mask)}
            for name, mask in norms.items()
        },
        "union": metrics.union_accuracy({threat["norm"]: robust, **norms}) if norms else None,
        "corruptions": corruption_figures(corrupted, columns["corrupted"]) if corrupted else None,
        "reject": _reject(results) if facts.get("reject") else None,
        **({"members": _members(facts["members"], columns)} if facts.get("members") else {}),
        **({"unforeseen": _unforeseen(results)} if facts.get("unforeseen") else {}),
        "classes": metrics.per_class(label, robust, classes or [str(k) for k in range(clean.shape[1])]),
        "calibration": {
            "clean": metrics.calibration_figures(clean, label),
            "adversarial": metrics.calibration_figures(adversarial, label) if adversarial is not None else None,
        },
        "audit": {**audit_verdict(checks), "checks": [asdict(check) for check in checks]},
        "seconds": round(facts["seconds"], 2),
        "forward_passes": facts["forward_passes"],
        "gradient_passes": facts["gradient_passes"],
        "warnings": list(evaluation_warnings(results)),
    }


def step_masks(results: EvalResults) -> list[tuple[int, Array]]:
    """(k, which examples are right after k steps) of the sweep."""
    codes = results.outcomes.get("broken_at")
    return [(k, robust_after(codes, k)) for k in results.facts["plan"]["steps"]] if codes is not None else []


def _attacks(results: EvalResults) -> Iterator[dict[str, Any]]:
    columns, robust = results.outcomes, results.swept
    for facts in results.facts["attacks"]:
        name, eight = facts["name"], results.examples.get(f"{facts['name']}.eight")
        tried, broken = columns[f"tried_{name}"], columns[f"broken_{name}"]
        robust = robust & ~broken
        entry = {
            "name": name,
            "access": facts["access"],
            "settings": facts["settings"],
            "tried": int(tried.sum()),
            "broken": int(broken.sum()),
            "broken_eight_bit": None if eight is None else int(eight.sum()),
            "alone": mask_accuracy(results.clean & ~broken) if np.array_equal(tried, results.clean) else None,
            "after": mask_accuracy(robust),
            **{key: facts[key] for key in ("seconds", "forwards", "gradients")},
        }
        if (distance := columns.get(f"distance_{name}")) is not None:
            entry["distance"] = metrics.median_distance(distance[tried], np.isfinite(distance[tried]))
        yield entry


def _eight_bit(results: EvalResults) -> dict[str, float] | None:
    """The worst case when adversarial images must be 8-bit ones; None where they were not kept."""
    robust = results.clean.copy()
    for name in results.main:
        if f"{name}.eight" not in results.examples:
            return None
        robust[results.examples[f"{name}.rows"][results.examples[f"{name}.eight"]]] = False
    return mask_accuracy(robust)


def _reject(results: EvalResults) -> dict[str, Any]:
    columns = results.outcomes
    given = columns["clean"], columns["logits_clean"], columns["confidence_adversarial"]
    return rejection_figures(results.facts["reject"], *given)


def _members(facts: Mapping[str, Any], columns: Mapping[str, Array]) -> dict[str, Any]:
    """Transfer between members: `robust[i][j]` is member j's accuracy on the images made on member i, of the n examples
    that all members have right; empty where there is none.
    """
    shared = columns["members_right"].all(axis=0)
    n = int(shared.sum())
    fooled = columns["members_fooled"][:, :, shared].sum(axis=2).tolist()
    return {
        "attack": facts["attack"],
        "n": n,
        "robust": [[accuracy_figures(n - count, n) for count in counts] for counts in fooled if n],
        **{key: facts[key] for key in ("seconds", "forwards", "gradients")},
    }


def _unforeseen(results: EvalResults) -> dict[str, Any]:
    return unforeseen_figures(results.facts["unforeseen"], results.outcomes["unforeseen_robust"])
