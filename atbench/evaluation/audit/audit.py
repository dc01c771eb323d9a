"""Whether the figures of an evaluation can be believed: signs of masked gradients, randomness and broken attacks.

The checks are those of Carlini et al. 2019 (arXiv 1902.06705), of Croce & Hein 2020 (fra31/auto-attack, checks.py), and
ours; each says what it holds against what (`model_checks.py`: outputs, gradients, state; `attack_checks.py`: attacks).
A flag says that a figure is not to be trusted before its cause is understood. That none is raised is no proof.

Price of the probes of one example: at most about 1,000 gradient steps and 120 forward passes, 400 of the steps only
where gradients are useless. Broken examples drop out: a network without robustness costs a tenth of that. A black box
or noise that beats the gradients costs 500 steps more of each example that it beats them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atbench.data import Images, stratified_subset
from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.audit import attack_checks, model_checks
from atbench.evaluation.audit.attack_probes import AttackProbes
from atbench.evaluation.audit.outputs import fingerprints, look, slopes
from atbench.evaluation.audit.verdicts import Check, not_run
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig

__all__ = ["Check", "audit", "verdict"]


def audit(
    eval_model: EvalModel, images: Images, clean: Tensor, threat: PGDConfig, outcomes: Mapping[str, Outcome], n: int
) -> list[Check]:
    """Put every check to an evaluation of `eval_model` under `threat`.

    Args:
        clean: (N,) booleans on the CPU, the examples of `images` that are classified right.
        outcomes: what has been run, by name: over all examples of `clean`, or over survivors, as their `tried` says.
        n: how many of `clean`, every class in proportion, the audit's own probes use. From 1,000 on, thresholds are
            those cited.

    Raises NumericalError where the network answers with NaN.
    """
    rows = clean.nonzero().flatten()
    rows = rows[stratified_subset(images.y[rows.to(images.y.device)], n)]
    if not len(rows):
        return [not_run("audit", "No image is there to probe: none is classified right, or none was asked for.")]
    before = fingerprints(eval_model.network)
    outputs, slope = look(eval_model, images, rows), slopes(eval_model, images, rows)
    checks = [*model_checks.of_outputs(outputs), model_checks.gradients(slope)]
    if why := _incomparable(eval_model, checks, slope is not None, threat):
        checks += [not_run(name, f"{why}: attacks cannot be compared.") for name in attack_checks.NAMES]
    else:
        alive = torch.zeros_like(clean).index_fill_(0, rows, True)
        checks += attack_checks.AttackChecks(
            AttackProbes(eval_model, images, threat, alive), outputs, clean, outcomes
        ).checks()
    return [*checks, model_checks.state(outputs, before, fingerprints(eval_model.network))]


def _incomparable(eval_model: EvalModel, checks: Sequence[Check], differentiable: bool, threat: PGDConfig) -> str:
    """Why comparisons would say nothing; empty if they do. The same on all processes, which search together."""
    if threat.eps == 0 or threat.steps == 0:
        return "The threat has no radius or no steps"
    if not differentiable:
        return "The outputs carry no gradient"
    # What is no function of the image is a lottery: the attack with more passes draws more tickets.
    lottery = any(check.verdict == "flag" for check in checks if check.name in ("randomness", "batch"))
    if bool(eval_model.reduce(torch.tensor(int(lottery), device=eval_model.device))):
        return "An image does not have one answer"
    return ""


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """`trusted`: something was checked and nothing flags. `flags`: the names of what does. `sentence`: both, and what
    was not run.
    """
    flags = [check.name for check in checks if check.verdict == "flag"]
    skipped = [check.name for check in checks if check.verdict == "not run"]
    run = len(checks) - len(skipped)
    sentence = f"{len(flags)} of {run} checks flag: {', '.join(flags)}." if flags else f"None of {run} checks flags."
    sentence = sentence if run else "No check was run."
    sentence += f" Not run: {', '.join(skipped)}." if skipped else ""
    return {"trusted": run > 0 and not flags, "flags": flags, "sentence": sentence}
