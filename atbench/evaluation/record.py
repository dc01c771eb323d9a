"""An evaluation as a record: figures with their n and interval, and the per-example outcomes that they are means of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atbench.data import stratified_subset
from atbench.evaluation import metrics, rejection
from atbench.evaluation.attack_limits import warnings
from atbench.evaluation.attack_runner import UNKNOWN, Found
from atbench.evaluation.audit.audit import verdict
from atbench.evaluation.evaluator import Evaluation
from atbench.evaluation.pgd_sweep import NEVER
from atbench.interval import figure

SHOWN = 8
Array = NDArray[Any]


def figures(found: Evaluation, classes: tuple[str, ...] = (), adversarial: Array | None = None) -> dict[str, Any]:
    """The record: accuracies, costs, statistics, the audit's verdict (docs/architecture.md, "The run folder").

    adversarial: the logits under attack that the statistics are of, where they are not to be put together anew.
    """
    n, plan = len(found.images), found.plan
    label = found.images.y.cpu().numpy()
    names = [*(["pgd"] if found.surface else []), *found.found]
    levels = [level.found for surface in _surfaces(found) for level in surface.levels.values()]
    everything = [*levels, *found.found.values(), *_mistaken(found)]
    adversarial = adversarial_logits(found) if adversarial is None else adversarial
    names_of_classes = classes or tuple(str(k) for k in range(found.logits.shape[1]))
    return {
        "n": n,
        "of": found.of or n,
        "random": found.random,
        "threat": {"norm": plan.threat.norm, "eps": plan.threat.eps},
        "plan": _plan(found),
        "clean": mean(found.clean),
        "robust": {**mean(found.robust), "attacks": names, "eight_bit": _eight_bit(found)},
        "bound": "upper",
        "attack": {"name": "pgd", **{k: v for k, v in asdict(plan.threat).items() if k != "steps"}},
        "steps": _steps(found),
        "eps": _eps(found),
        "attacks": list(_attacks(found)),
        "norms": {
            name: {"eps": s.threat.eps, "k": s.threat.steps, **mean(s.main.first == UNKNOWN)}
            for name, s in found.norms.items()
        },
        "union": _union(found) if found.norms else None,
        "corruptions": found.corrupted[0] if found.corrupted else None,
        "reject": _reject(found),
        "classes": metrics.per_class(label, found.robust.numpy(), names_of_classes),
        "calibration": {
            "clean": metrics.calibration(found.logits, label),
            "adversarial": metrics.calibration(adversarial, label) if adversarial is not None else None,
        },
        "audit": {**verdict(found.checks), "checks": [asdict(check) for check in found.checks]},
        "seconds": round(sum(each.outcome.seconds for each in everything), 2),
        "forward_passes": n + sum(each.outcome.forwards for each in everything),
        "gradient_passes": sum(each.outcome.gradients for each in everything),
        "warnings": list(warnings(found)),
    }


def _plan(found: Evaluation) -> dict[str, Any]:
    """What `verify` has to know to read the kept images."""
    plan = found.plan
    return {
        "threat": asdict(plan.threat),
        "steps": list(plan.steps),
        "eps_grid": list(plan.eps_grid),
        "eps_steps": plan.eps_steps,
        "sequential": plan.sequential,
        "multiples": list(found.surface.levels) if found.surface else [],
        "norms": {name: asdict(threat) for name, threat in plan.norms.items()},
    }


def mean(mask: Tensor) -> dict[str, float]:
    """The accuracy that a mask is, with its interval."""
    return figure(int(mask.sum()), len(mask))


def _union(found: Evaluation) -> dict[str, Any]:
    """Right under the main threat's attacks and under PGD in every other norm."""
    masks = {name: (surface.main.first == UNKNOWN).numpy() for name, surface in found.norms.items()}
    return metrics.union({found.plan.threat.norm: found.robust.numpy(), **masks})


def _reject(found: Evaluation) -> dict[str, Any] | None:
    if found.rejection is None:
        return None
    return rejection.figures(found.rejection, _main(found), found.clean.numpy(), found.logits)


def _main(found: Evaluation) -> list[Found]:
    """All attacks of the main threat, those of smaller radii of the sweep among them."""
    main = [level.found for multiple, level in found.surface.levels.items() if multiple <= 1] if found.surface else []
    return [*main, *found.found.values()]


def _mistaken(found: Evaluation) -> list[Found]:
    """The attack that knows of the rejection, on images that are wrong without one."""
    return [found.rejection.mistaken] if found.rejection else []


def _surfaces(found: Evaluation) -> list[Any]:
    return [*([found.surface] if found.surface else []), *found.norms.values()]


def _steps(found: Evaluation) -> list[dict[str, Any]]:
    if found.surface is None:
        return []
    first = found.surface.main.first
    return [{"k": k, **mean(first > k)} for k in found.plan.steps]


def _eps(found: Evaluation) -> list[dict[str, Any]]:
    k = found.plan.eps_steps
    return [{"eps": multiple * found.plan.threat.eps, "k": k, **mean(mask)} for multiple, mask in eps_masks(found)]


def eps_masks(found: Evaluation) -> list[tuple[float, Tensor]]:
    """(multiple of ε, who is right after `eps_steps` steps), ascending."""
    if found.surface is None:
        return []
    levels, k = found.surface.levels, found.plan.eps_steps
    return [(m, levels[m].first > k if m else found.clean) for m in sorted(found.plan.eps_grid)]


def _attacks(found: Evaluation) -> Iterator[dict[str, Any]]:
    left = found.clean & (found.surface.main.first == UNKNOWN) if found.surface else found.clean.clone()
    for name, each in found.found.items():
        outcome = each.outcome
        left = left & ~outcome.broken
        alone = torch.equal(outcome.tried, found.clean)
        entry = {
            "name": name,
            "access": outcome.access,
            "settings": dict(each.settings),
            "tried": int(outcome.tried.sum()),
            "broken": int(outcome.broken.sum()),
            "broken_eight_bit": int(each.eight.sum()),
            "alone": mean(found.clean & ~outcome.broken) if alone else None,
            "after": mean(left),
            "seconds": outcome.seconds,
            "forwards": outcome.forwards,
            "gradients": outcome.gradients,
        }
        if each.minimal:
            far = each.distance[outcome.tried.numpy()]
            entry["distance"] = metrics.median_distance(far, np.isfinite(far))
        yield entry


def _eight_bit(found: Evaluation) -> dict[str, float]:
    """The worst case when adversarial images must be 8-bit ones."""
    left = found.clean.clone()
    for each in _main(found):
        left[torch.from_numpy(each.rows[each.eight])] = False
    return mean(left)


def adversarial_logits(found: Evaluation) -> Array | None:
    """(n, K): each example's logits at its adversarial image, or at the best try of the last attack on it; the clean
    ones where it was wrong without. None before any attack.
    """
    attacks = _main(found)
    if not attacks:
        return None
    logits, settled = found.logits.copy(), np.zeros(len(found.logits), bool)
    for each in attacks:
        tried, broken = each.outcome.tried.numpy(), each.outcome.broken.numpy()
        take = tried & ~settled
        if take.any():  # an attack that ran on nothing does not know how many classes there are
            logits[take] = each.logits[take]
        settled |= broken
    return logits


def arrays(found: Evaluation) -> dict[str, Array]:
    """The outcome of every example, for the npz beside the record; and what the record says that is no mean of one."""
    grid = eps_masks(found)
    n, eps = len(found.images), found.plan.threat.eps
    out = {
        "index": found.images.indices(torch.arange(n)).numpy(),
        "label": found.images.y.cpu().numpy(),
        "clean": found.clean.numpy(),
        "robust": found.robust.numpy(),
        "logits_clean": found.logits,
        "eps_grid": np.array([multiple * eps for multiple, _ in grid]),
        "eps_robust": np.stack([mask.numpy() for _, mask in grid]) if grid else np.zeros((0, n), bool),
    }
    if (adversarial := adversarial_logits(found)) is not None:
        out["logits_adversarial"] = adversarial
        names = [str(k) for k in range(adversarial.shape[1])]
        out["confusion"] = np.array(metrics.confusion(out["label"], adversarial.argmax(axis=1), names)["counts"])
    if found.surface:
        out["broken_at"] = step_codes(found.surface.main.first)
        out["surface_eps"] = np.array([multiple * eps for multiple in found.surface.levels])
        out["surface"] = np.stack([step_codes(level.first) for level in found.surface.levels.values()])
    for name, surface in found.norms.items():
        out[f"broken_at_{name}"] = step_codes(surface.main.first)
    if found.corrupted:
        out["corrupted"] = found.corrupted[1]
    if found.rejection:
        out["confidence_adversarial"] = rejection.adversarial_confidence([*_main(found), *_mistaken(found)], n)
    for name, each in found.found.items():
        out[f"tried_{name}"], out[f"broken_{name}"] = each.outcome.tried.numpy(), each.outcome.broken.numpy()
        if each.minimal:
            out[f"distance_{name}"] = each.distance
    if found.checks:
        out["audit"] = np.array([json.dumps(asdict(check)) for check in found.checks])
    return {**out, **_pictures(found)}


def step_codes(first: Tensor) -> Array:
    """int16: the first broken step, 0 where wrong without attack, NEVER where nothing broke it."""
    return torch.where(first == UNKNOWN, NEVER, first).to(torch.int16).numpy()


def examples(found: Evaluation) -> dict[str, Array]:
    """All adversarial images, float32, with the attack and, for PGD, the radius and the step that each belongs to."""
    out: dict[str, Array] = {}
    for name, surface in (("pgd", found.surface), *((f"pgd_{n}", s) for n, s in found.norms.items())):
        for position, level in enumerate(surface.levels.values() if surface else ()):
            out |= _images(f"{name}.{position}", level.found)
            out[f"{name}.{position}.step"] = level.first.numpy()[level.found.rows].astype(np.int16)
    for name, each in (*found.found.items(), *(("mistaken", each) for each in _mistaken(found))):
        out |= _images(name, each)
    return out


def _images(name: str, found: Found) -> dict[str, Array]:
    return {f"{name}.rows": found.rows, f"{name}.x_adv": found.x_adv, f"{name}.eight": found.eight}


def _pictures(found: Evaluation) -> dict[str, Array]:
    """Up to SHOWN of the examples that were broken, every class in proportion, clean and adversarial."""
    label = found.images.y.cpu().numpy()
    image: dict[int, Array] = {}
    for each in reversed(_main(found)):
        image |= {int(row): x_adv for row, x_adv in zip(each.rows, each.x_adv, strict=True)}
    rows = np.array(sorted(image), np.int64)
    shown = rows[stratified_subset(torch.from_numpy(label[rows]), SHOWN).numpy()]
    adversarial = adversarial_logits(found)
    after = adversarial[shown].argmax(axis=1) if adversarial is not None else shown
    index = torch.from_numpy(shown).to(found.images.x.device)
    return {
        "shown_index": shown,
        "shown_x": found.images.floats(index).cpu().numpy(),
        "shown_adv": np.stack([image[int(row)] for row in shown])
        if len(shown)
        else np.zeros((0, *found.images.x.shape[1:]), np.float32),
        "shown_clean": found.logits[shown].argmax(axis=1),
        "shown_broken": after,
    }


def weights_sha256(network: nn.Module) -> str:
    """Checksum over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
