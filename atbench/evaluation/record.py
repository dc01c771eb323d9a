"""Record of an evaluation: figures with n and interval, and the per-example outcomes that they are means of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atbench.data import stratified_subset
from atbench.evaluation import members, metrics, rejection, unforeseen
from atbench.evaluation.attack_limits import evaluation_warnings
from atbench.evaluation.attack_result import UNBROKEN, Array, AttackResult
from atbench.evaluation.attack_runner import SweepResult
from atbench.evaluation.audit.audit import audit_verdict
from atbench.evaluation.evaluator import EvalResults
from atbench.evaluation.pgd_sweep import NEVER
from atbench.evaluation.rejection import MISCLASSIFIED
from atbench.interval import accuracy_figures

SHOWN = 8


def build_record(
    results: EvalResults, classes: tuple[str, ...] = (), adversarial: Array | None = None
) -> dict[str, Any]:
    """The record: accuracies, costs, statistics, the audit's verdict (docs/architecture.md, "The run folder").

    adversarial: the logits under attack that the statistics are of; by default those of `adversarial_logits`.
    """
    n, plan = len(results.images), results.plan
    label = results.images.y.cpu().numpy()
    names = [*(["pgd"] if results.sweep else []), *results.attacks]
    radii = [result for sweep in _sweeps(results).values() for result in sweep.radii.values()]
    everything = [*radii, *results.attacks.values(), *_misclassified(results).values()]
    adversarial = adversarial_logits(results) if adversarial is None else adversarial
    # Right under the main threat's attacks, and under PGD in every other norm.
    threats = {plan.threat.norm: results.robust.numpy()}
    threats |= {name: sweep.robust.numpy() for name, sweep in results.norms.items()}
    class_names = classes or tuple(str(k) for k in range(results.logits.shape[1]))
    return {
        "n": n,
        "of": results.split_size or n,
        "random": results.random,
        "threat": {"norm": plan.threat.norm, "eps": plan.threat.eps},
        "plan": _plan(results),
        "clean": mask_accuracy(results.clean),
        "robust": {**mask_accuracy(results.robust), "attacks": names, "eight_bit": _eight_bit(results)},
        "bound": "upper",
        "attack": {"name": "pgd", **{k: v for k, v in asdict(plan.threat).items() if k != "steps"}},
        "steps": [{"k": k, **mask_accuracy(mask)} for k, mask in step_masks(results)],
        "eps": [
            {"eps": multiple * plan.threat.eps, "k": plan.eps_steps, **mask_accuracy(mask)}
            for multiple, mask in eps_masks(results)
        ],
        "attacks": list(_attacks(results)),
        "norms": {
            name: {"eps": sweep.config.eps, "k": sweep.config.steps, **mask_accuracy(sweep.robust)}
            for name, sweep in results.norms.items()
        },
        "union": metrics.union_accuracy(threats) if results.norms else None,
        "corruptions": results.corruptions[0] if results.corruptions else None,
        "reject": _reject(results),
        **({"members": members.transfer_figures(results.members)} if results.members else {}),
        **({"unforeseen": unforeseen.unforeseen_figures(results.unforeseen)} if results.unforeseen else {}),
        "classes": metrics.per_class(label, results.robust.numpy(), class_names),
        "calibration": {
            "clean": metrics.calibration_figures(results.logits, label),
            "adversarial": metrics.calibration_figures(adversarial, label) if adversarial is not None else None,
        },
        "audit": {**audit_verdict(results.checks), "checks": [asdict(check) for check in results.checks]},
        "seconds": round(sum(result.seconds for result in everything), 2),
        "forward_passes": n + sum(result.forwards for result in everything),
        "gradient_passes": sum(result.gradients for result in everything),
        "warnings": list(evaluation_warnings(results)),
    }


def _plan(results: EvalResults) -> dict[str, Any]:
    """What `verify` needs to read the kept images."""
    plan = results.plan
    return {
        "threat": asdict(plan.threat),
        "steps": list(plan.steps),
        "eps_grid": list(plan.eps_grid),
        "eps_steps": plan.eps_steps,
        "sequential": plan.sequential,
        "multiples": list(results.sweep.radii) if results.sweep else [],
        "norms": {name: asdict(threat) for name, threat in plan.norms.items()},
    }


def mask_accuracy(mask: Tensor) -> dict[str, float]:
    return accuracy_figures(int(mask.sum()), len(mask))


def _reject(results: EvalResults) -> dict[str, Any] | None:
    if results.rejection is None:
        return None
    return rejection.rejection_figures(results.rejection, _main_attacks(results), results.clean.numpy(), results.logits)


def _main_attacks(results: EvalResults) -> list[AttackResult]:
    """All attacks of the main threat, those of smaller radii of the sweep among them."""
    sweep = results.sweep.radii.items() if results.sweep else ()
    return [*(result for multiple, result in sweep if multiple <= 1), *results.attacks.values()]


def _misclassified(results: EvalResults) -> dict[str, AttackResult]:
    """By name, the rejection's attack on images that are wrong without one."""
    return {MISCLASSIFIED: results.rejection.misclassified} if results.rejection else {}


def _sweeps(results: EvalResults) -> dict[str, SweepResult]:
    """By name in the files: PGD in the main threat and in the other norms."""
    main = {"pgd": results.sweep} if results.sweep else {}
    return {**main, **{f"pgd_{name}": sweep for name, sweep in results.norms.items()}}


def step_masks(results: EvalResults) -> list[tuple[int, Tensor]]:
    return [(k, results.sweep.main.first_broken > k) for k in results.plan.steps] if results.sweep else []


def eps_masks(results: EvalResults) -> list[tuple[float, Tensor]]:
    """(multiple of ε, which examples are right after `eps_steps` steps), ascending."""
    if results.sweep is None:
        return []
    radii, k = results.sweep.radii, results.plan.eps_steps
    return [(m, radii[m].first_broken > k if m else results.clean) for m in sorted(results.plan.eps_grid)]


def _attacks(results: EvalResults) -> Iterator[dict[str, Any]]:
    robust = results.clean & results.sweep.robust if results.sweep else results.clean
    for name, result in results.attacks.items():
        robust = robust & ~result.broken
        alone = torch.equal(result.tried, results.clean)
        entry = {
            "name": name,
            "access": result.access,
            "settings": dict(result.settings),
            "tried": int(result.tried.sum()),
            "broken": int(result.broken.sum()),
            "broken_eight_bit": int(result.eight_bit.sum()),
            "alone": mask_accuracy(results.clean & ~result.broken) if alone else None,
            "after": mask_accuracy(robust),
            "seconds": result.seconds,
            "forwards": result.forwards,
            "gradients": result.gradients,
        }
        if result.minimal:
            distance = result.distance[result.tried.numpy()]
            entry["distance"] = metrics.median_distance(distance, np.isfinite(distance))
        yield entry


def _eight_bit(results: EvalResults) -> dict[str, float]:
    """The worst case when adversarial images must be 8-bit ones."""
    robust = results.clean.clone()
    for result in _main_attacks(results):
        robust[torch.from_numpy(result.rows[result.eight_bit])] = False
    return mask_accuracy(robust)


def adversarial_logits(results: EvalResults) -> Array | None:
    """(n, K): each example's logits at its adversarial image, or at the best try of the last attack on it; the clean
    ones where it was wrong without. None before any attack.
    """
    attacks = _main_attacks(results)
    if not attacks:
        return None
    logits, broken = results.logits.copy(), np.zeros(len(results.logits), bool)
    for result in attacks:
        rows = result.tried.numpy() & ~broken
        if rows.any():  # an attack that ran on nothing does not know how many classes there are
            logits[rows] = result.logits[rows]
        broken |= result.broken.numpy()
    return logits


def outcome_arrays(results: EvalResults) -> dict[str, Array]:
    """The npz beside the record: the outcome of every example, and what of the record is no mean of one."""
    grid = eps_masks(results)
    n, eps = len(results.images), results.plan.threat.eps
    out = {
        "index": results.images.indices(torch.arange(n)).numpy(),
        "label": results.images.y.cpu().numpy(),
        "clean": results.clean.numpy(),
        "robust": results.robust.numpy(),
        "logits_clean": results.logits,
        "eps_grid": np.array([multiple * eps for multiple, _ in grid]),
        "eps_robust": np.stack([mask.numpy() for _, mask in grid]) if grid else np.zeros((0, n), bool),
    }
    if (adversarial := adversarial_logits(results)) is not None:
        out["logits_adversarial"] = adversarial
        names = [str(k) for k in range(adversarial.shape[1])]
        counts = metrics.confusion_counts(out["label"], adversarial.argmax(axis=1), names)["counts"]
        out["confusion"] = np.array(counts)
    if results.sweep:
        out["broken_at"] = step_codes(results.sweep.main.first_broken)
        out["surface_eps"] = np.array([multiple * eps for multiple in results.sweep.radii])
        out["surface"] = np.stack([step_codes(result.first_broken) for result in results.sweep.radii.values()])
    for name, sweep in results.norms.items():
        out[f"broken_at_{name}"] = step_codes(sweep.main.first_broken)
    if results.corruptions:
        out["corrupted"] = results.corruptions[1]
    if results.members:
        out["members_right"], out["members_fooled"] = results.members.right, results.members.fooled
    if results.unforeseen:
        out["unforeseen_robust"] = results.unforeseen.robust
    if results.rejection:
        attacks = [*_main_attacks(results), results.rejection.misclassified]
        out["confidence_adversarial"] = rejection.adversarial_confidence(attacks, n)
    for name, result in results.attacks.items():
        out[f"tried_{name}"], out[f"broken_{name}"] = result.tried.numpy(), result.broken.numpy()
        if result.minimal:
            out[f"distance_{name}"] = result.distance
    if results.checks:
        out["audit"] = np.array([json.dumps(asdict(check)) for check in results.checks])
    return {**out, **_pictures(results)}


def step_codes(first_broken: Tensor) -> Array:
    """int16: the first broken step, 0 where wrong without attack, NEVER where nothing broke it."""
    return torch.where(first_broken == UNBROKEN, NEVER, first_broken).to(torch.int16).numpy()


def example_arrays(results: EvalResults) -> dict[str, Array]:
    """All adversarial images, float32, with the attack and, for PGD, the radius and the step that each belongs to; of
    distortions their parameters.
    """
    out: dict[str, Array] = {}
    for name, sweep in _sweeps(results).items():
        for position, result in enumerate(sweep.radii.values()):
            out |= _images(f"{name}.{position}", result)
            out[f"{name}.{position}.step"] = result.first_broken.numpy()[result.rows].astype(np.int16)
    for name, result in {**results.attacks, **_misclassified(results)}.items():
        out |= _images(name, result)
    for number, attack in enumerate(results.members.attacks if results.members else ()):
        out |= {f"member{number}.rows": attack.rows, f"member{number}.x_adv": attack.x_adv}
    return out | (unforeseen.unforeseen_arrays(results.unforeseen) if results.unforeseen else {})


def _images(name: str, result: AttackResult) -> dict[str, Array]:
    return {f"{name}.rows": result.rows, f"{name}.x_adv": result.x_adv, f"{name}.eight": result.eight_bit}


def _pictures(results: EvalResults) -> dict[str, Array]:
    """Up to SHOWN of the broken examples, every class in proportion, clean and adversarial."""
    label = results.images.y.cpu().numpy()
    x_adv: dict[int, Array] = {}
    for result in reversed(_main_attacks(results)):
        x_adv |= {int(row): image for row, image in zip(result.rows, result.x_adv, strict=True)}
    rows = np.array(sorted(x_adv), np.int64)
    shown = rows[stratified_subset(torch.from_numpy(label[rows]), SHOWN).numpy()]
    adversarial = adversarial_logits(results)
    empty = np.zeros((0, *results.images.x.shape[1:]), np.float32)
    return {
        "shown_index": shown,
        "shown_x": results.images.floats(torch.from_numpy(shown).to(results.images.x.device)).cpu().numpy(),
        "shown_adv": np.stack([x_adv[int(row)] for row in shown]) if len(shown) else empty,
        "shown_clean": results.logits[shown].argmax(axis=1),
        "shown_broken": adversarial[shown].argmax(axis=1) if adversarial is not None else shown,
    }


def weights_sha256(network: nn.Module) -> str:
    """Checksum over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
