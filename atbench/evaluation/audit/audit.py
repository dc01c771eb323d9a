"""Audit of an evaluation: checks for masked gradients, randomness and broken attacks.

The checks are those of Carlini et al. 2019 (arXiv 1902.06705), of Croce & Hein 2020 (fra31/auto-attack, checks.py), and
ours (`model_checks.py`: outputs, gradients, state; `attack_checks.py`: attacks). A flag means that the robust accuracy
is not to be trusted before its cause is understood; no flag proves nothing.

Cost of the probes for one example: at most about 1,200 gradient steps and 120 forward passes, 400 of the steps only
where gradients are useless. Broken examples drop out: a network without robustness costs a tenth of that. A black box
or noise that beats the gradients costs 500 further steps for each example that it beats them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atbench.data import Images, stratified_subset
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.audit import attack_checks, model_checks
from atbench.evaluation.audit.attack_probes import AttackProbes
from atbench.evaluation.audit.outputs import gradient_magnitudes, measure_outputs, state_checksums
from atbench.evaluation.audit.verdicts import Check, not_run
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig


def run_audit(
    eval_model: EvalModel, images: Images, clean: Tensor, threat: PGDConfig, results: Mapping[str, AttackResult], n: int
) -> list[Check]:
    """Run every check on an evaluation of `eval_model` under `threat`.

    Args:
        clean: (N,) booleans on the CPU, the examples of `images` that are classified right.
        results: the attacks that were run, by name, each on all of `clean` or on what was still robust (`tried`).
        n: how many of `clean`, every class in proportion, the audit's own probes use. From 1,000 on, thresholds are
            those cited.

    Raises NumericalError where the network answers with NaN.
    """
    rows = clean.nonzero().flatten()
    rows = rows[stratified_subset(images.y[rows.to(images.y.device)], n)]
    if not len(rows):
        return [not_run("audit", "No image to probe: none is classified right, or eval.audit is 0.")]
    before = state_checksums(eval_model.network)
    outputs, gradients = measure_outputs(eval_model, images, rows), gradient_magnitudes(eval_model, images, rows)
    checks = [*model_checks.output_checks(outputs), model_checks.zero_gradients(gradients)]
    if reason := _not_comparable(eval_model, checks, gradients is not None, threat):
        checks += [not_run(name, f"{reason}: attacks cannot be compared.") for name in attack_checks.NAMES]
    else:
        probes = AttackProbes(eval_model, images, threat, torch.zeros_like(clean).index_fill_(0, rows, True))
        checks += attack_checks.AttackChecks(probes, outputs, clean, results).checks()
    return [*checks, model_checks.state_change(outputs, before, state_checksums(eval_model.network))]


def _not_comparable(eval_model: EvalModel, checks: Sequence[Check], differentiable: bool, threat: PGDConfig) -> str:
    """Why attacks cannot be compared; empty if they can. The same on all processes, which attack together."""
    if threat.eps == 0 or threat.steps == 0:
        return "The threat has radius 0 or no steps"
    if not differentiable:
        return "The outputs carry no gradient"
    # Outputs that are no function of the image favour the attack with more passes.
    random = any(check.verdict == "flag" for check in checks if check.name in ("randomness", "batch"))
    if bool(eval_model.reduce(torch.tensor(int(random), device=eval_model.device))):
        return "An image does not always get the same prediction"
    return ""


def audit_verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """The verdict: `trusted` (some check was run and none flagged), `flags` (names), `sentence` (both, and checks that
    were not run).
    """
    flags = [check.name for check in checks if check.verdict == "flag"]
    skipped = [check.name for check in checks if check.verdict == "not run"]
    run = len(checks) - len(skipped)
    sentence = f"{len(flags)} of {run} audit checks flagged{': ' if flags else ''}{', '.join(flags)}."
    sentence = sentence if run else "No audit check was run."
    sentence += f" Not run: {', '.join(skipped)}." if skipped else ""
    return {"trusted": run > 0 and not flags, "flags": flags, "sentence": sentence}
