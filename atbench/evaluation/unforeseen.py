"""Accuracy under distortions that were not trained for, and Unforeseen Attack Robustness (Kang et al. 2019).

    UAR(A) = Σ_k Acc(A, ε_k) / Σ_k ATA(A, ε_k) over six sizes,   mUAR = mean of UAR over the attacks that ran

ATA(A, ε) is the best accuracy that the authors reached by training against A. Every attack runs at every size on the
images that are right without one; an image that is wrong without an attack counts as wrong, whereas the authors' code
counts what the attack has turned right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.attacks import wrong_classes
from atbench.attacks.unforeseen.distortion import Distortion, search
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.data import Images
from atbench.errors import ConfigError, hint
from atbench.evaluation.attack_result import Array
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.result_cache import ResultCache
from atbench.evaluation.unforeseen_calibrations import CALIBRATIONS, STEPS, nearest_calibration
from atbench.interval import accuracy_figures
from atbench.runs.seeding import ExampleDraws, derive_seed


@dataclass(frozen=True)
class UnforeseenPlan:
    """Attacks by name, each at the sizes of the calibration `sizes`; `data` is the calibration that the images belong
    to, None where there is none.
    """

    attacks: Sequence[str]
    steps: int
    sizes: str
    data: str | None
    seed: int = 0

    def eps(self, name: str) -> tuple[float, ...]:
        return CALIBRATIONS[self.sizes].sizes[name]

    @property
    def searches(self) -> list[tuple[str, int, float]]:
        """(attack, number of the size, ε), in the order of the masks."""
        return [(name, k, eps) for name in self.attacks for k, eps in enumerate(self.eps(name))]


@dataclass(frozen=True)
class KeptDistortions:
    """One attack at one size: the m examples that it broke (int64 rows) with their z (float32), and its cost."""

    rows: Array
    z: Array
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0


@dataclass(frozen=True)
class UnforeseenResult:
    """All searches of a plan. clean: booleans (n,), right without an attack."""

    plan: UnforeseenPlan
    clean: Array
    kept: Sequence[KeptDistortions]

    @property
    def robust(self) -> Array:
        """Booleans (A, S, n): right at that size of that attack."""
        robust = np.tile(self.clean, (len(self.kept), 1))
        for mask, kept in zip(robust, self.kept, strict=True):
            mask[kept.rows] = False
        return robust.reshape(len(self.plan.attacks), -1, len(self.clean))


def unforeseen_plan(
    attacks: Sequence[str], steps: int, data: str | None, source: str, images: Images, seed: int
) -> UnforeseenPlan | None:
    """The plan of `eval.unforeseen`; None without attacks.

    data: name of a calibration, None for that of the data set `source`. Raises ConfigError for an attack that is not
    known, not defined for the images, or has no sizes.
    """
    if not attacks:
        return None
    channels, height, width = (int(size) for size in images.x.shape[1:])
    data = data or (source if source in CALIBRATIONS else None)
    if data is not None and data not in CALIBRATIONS:
        known = f"use one of {', '.join(CALIBRATIONS)}, or null"
        raise ConfigError("eval.unforeseen_data", data, "there are no reference accuracies of it", known)
    sizes = data or nearest_calibration(max(height, width))
    for name in attacks:
        if name not in DISTORTIONS:
            raise ConfigError("eval.unforeseen", name, "there is no such attack", hint(name, DISTORTIONS))
        leave = f"leave it out: eval.unforeseen=[{','.join(_defined(attacks, (channels, height, width), sizes))}]"
        if why := DISTORTIONS[name].refusal((channels, height, width)):
            raise ConfigError("eval.unforeseen", name, f"{why}, {source} has {channels}×{height}×{width}", leave)
        if name not in CALIBRATIONS[sizes].sizes:
            raise ConfigError("eval.unforeseen", name, f"{CALIBRATIONS[sizes].of} has no sizes of it", leave)
    return UnforeseenPlan(tuple(dict.fromkeys(attacks)), steps, sizes, data, seed)


def _defined(attacks: Sequence[str], shape: tuple[int, int, int], sizes: str) -> list[str]:
    calibrated = CALIBRATIONS[sizes].sizes
    return [name for name in attacks if name in calibrated and DISTORTIONS[name].refusal(shape) is None]


def attack_unforeseen(
    eval_model: EvalModel, images: Images, clean: Tensor, classes: int, plan: UnforeseenPlan, cache: ResultCache
) -> UnforeseenResult:
    """Run every attack at every size on the examples that are right without one (`clean`, booleans (n,))."""
    rows, kept = clean.nonzero().flatten(), []
    for name, _, eps in plan.searches:
        settings = {"attack": name, "eps": eps, "steps": plan.steps, "seed": plan.seed}
        work = partial(_attack_batch, eval_model, images, classes, plan, name, eps)
        columns = cache.measure(eval_model, f"unforeseen-{name}-{eps:g}", settings, rows, work)
        if not columns:
            kept.append(KeptDistortions(np.zeros(0, np.int64), np.zeros(0, np.float32)))
            continue
        broken = columns["broken"]
        cost = {key: float(columns[key].sum()) for key in ("seconds", "forwards", "gradients")}
        passes = round(cost["forwards"]), round(cost["gradients"])
        kept.append(KeptDistortions(rows.numpy()[broken], columns["z"][broken], round(cost["seconds"], 3), *passes))
    return UnforeseenResult(plan, clean.numpy(), kept)


def _attack_batch(
    eval_model: EvalModel, images: Images, classes: int, plan: UnforeseenPlan, name: str, eps: float, rows: Tensor
) -> dict[str, Tensor]:
    """The last z of one search for the examples `rows`, and whether it breaks them."""
    x, y = eval_model.load(images, rows)
    distortion = _distortion(images, plan, name, eps, x, rows)
    # For networks that draw numbers of their own.
    torch.manual_seed(derive_seed(plan.seed, "unforeseen", name, f"{eps:g}", int(rows[0])))
    with eval_model.ready():
        targets = wrong_classes(y, classes, distortion.rng.at("class").uniform(y.float()))
        z = search(distortion, eval_model, targets, plan.steps).float()
    return {"z": z, "broken": judge(eval_model, images, plan, name, eps, rows, z)}


def _distortion(images: Images, plan: UnforeseenPlan, name: str, eps: float, x: Tensor, rows: Tensor) -> Distortion:
    rng = ExampleDraws(plan.seed, "unforeseen", name, f"{eps:g}", index=images.indices(rows))
    return DISTORTIONS[name](x, eps, rng)


def judge(
    eval_model: EvalModel, images: Images, plan: UnforeseenPlan, name: str, eps: float, rows: Tensor, z: Tensor
) -> Tensor:
    """(B,) booleans: which images A(x, z), as float32, are misclassified, with z in the attack's set."""
    x, y = eval_model.load(images, rows)
    with torch.no_grad(), eval_model.ready():
        distortion, z = _distortion(images, plan, name, eps, x, rows), z.to(x)
        x_adv = distortion.image(z).float().to(x)
        legal = distortion.inside(z) & torch.isfinite(x_adv).flatten(1).all(dim=1)
        shown = torch.where(torch.isfinite(x_adv), x_adv, x)
        logits = eval_model.seeded_logits(shown, images.indices(rows), plan.seed, "unforeseen", name, f"{eps:g}")
    return (logits.argmax(dim=1) != y) & legal


def judge_again(
    eval_model: EvalModel,
    images: Images,
    clean: Tensor,
    plan: UnforeseenPlan,
    examples: Mapping[str, Array],
) -> UnforeseenResult:
    """The result that the kept z prove."""
    kept = []
    for name, k, eps in plan.searches:
        rows, z = _read(examples, f"unforeseen.{name}.{k}", len(clean), DISTORTIONS[name], eps, images)
        broken = np.zeros(len(rows), bool)
        for part in torch.arange(len(rows)).split(eval_model.batch_size) if len(rows) else ():
            index = torch.from_numpy(rows)[part]
            broken[part] = judge(eval_model, images, plan, name, eps, index, torch.from_numpy(z)[part]).cpu().numpy()
        broken &= clean.numpy()[rows]
        kept.append(KeptDistortions(rows[broken], z[broken]))
    return UnforeseenResult(plan, clean.numpy(), kept)


def _read(
    examples: Mapping[str, Array], key: str, n: int, kind: type[Distortion], eps: float, images: Images
) -> tuple[Array, Array]:
    """Rows and z that were kept; none where they do not belong together."""
    rows, z = examples.get(f"{key}.rows"), examples.get(f"{key}.z")
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if rows is None or z is None or rows.dtype.kind != "i" or rows.ndim != 1 or z.dtype.kind != "f":
        return nothing
    if z.ndim < 1 or len(z) != len(rows) or bool(((rows < 0) | (rows >= n)).any()):
        return nothing
    first = torch.zeros(1, dtype=torch.int64)
    start = kind(images.floats(first), eps, ExampleDraws(0, index=first)).start()
    return (rows, z) if not len(rows) or z.shape[1:] == start.shape[1:] else nothing


def unforeseen_figures(result: UnforeseenResult) -> dict[str, Any]:
    """The part `unforeseen` of a record: accuracies by attack and ε, UAR of each attack, and mUAR.

    `data` and every `uar` are null where there are no reference accuracies. The interval of a UAR is that of its mean
    accuracy over the sizes, a score of n images; that of mUAR the mean of theirs, which is too wide rather than too
    narrow.
    """
    plan, n = result.plan, len(result.clean)
    attacks, known = list[dict[str, Any]](), list[dict[str, float]]()
    for name, masks in zip(plan.attacks, result.robust, strict=True):
        scores = accuracy_figures(float(masks.mean(axis=0).sum()), n)
        ata = CALIBRATIONS[plan.data].ata[name] if plan.data else None
        rows = [
            {"eps": float(eps), **accuracy_figures(int(mask.sum()), n), "ata": ata[k] if ata else None}
            for k, (eps, mask) in enumerate(zip(plan.eps(name), masks, strict=True))
        ]
        uar = _uar(scores, ata) if ata else None
        known += [uar] if uar else []
        attacks.append({"name": name, "unit": DISTORTIONS[name].unit, "sizes": rows, "mean": scores, "uar": uar})
    return {
        "data": plan.data,
        "sizes_of": plan.sizes,
        "steps": plan.steps,
        "n": n,
        "note": _note(plan),
        "attacks": attacks,
        "muar": {key: float(np.mean([uar[key] for uar in known])) for key in ("uar", "low", "high")} if known else None,
        "seconds": round(sum(each.seconds for each in result.kept), 3),
        "forwards": sum(each.forwards for each in result.kept),
        "gradients": sum(each.gradients for each in result.kept),
    }


def unforeseen_arrays(result: UnforeseenResult) -> dict[str, Array]:
    """What is kept beside a record: `unforeseen.<attack>.<size>.rows` and `.z` of the examples that it broke."""
    out: dict[str, Array] = {}
    for (name, k, _), kept in zip(result.plan.searches, result.kept, strict=True):
        out |= {f"unforeseen.{name}.{k}.rows": kept.rows, f"unforeseen.{name}.{k}.z": kept.z}
    return out


def _uar(mean: Mapping[str, float], ata: Sequence[float]) -> dict[str, float]:
    """UAR with the interval of the mean accuracy over the sizes."""
    names = {"uar": "accuracy", "low": "low", "high": "high"}
    return {key: mean[name] * len(ata) / sum(ata) for key, name in names.items()}


def _note(plan: UnforeseenPlan) -> str | None:
    if plan.data is None:
        return f"no reference accuracies of this data set, so that UAR is not defined; sizes of {plan.sizes}"
    return None if plan.steps == STEPS else f"{plan.steps} steps; the reference accuracies are of {STEPS}"
