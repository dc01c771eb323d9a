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

import numpy as np
import torch
from torch import Tensor

from atbench.attacks import wrong_classes
from atbench.attacks.unforeseen.distortion import Distortion, search
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.data import Images
from atbench.errors import ConfigError, hint
from atbench.evaluation.attack_result import COST, AttackResult, total_cost
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import EvalResults
from atbench.evaluation.metrics import Array
from atbench.evaluation.result_cache import ResultCache
from atbench.evaluation.unforeseen_calibrations import CALIBRATIONS, nearest_calibration
from atbench.runs.seeding import ExampleDraws, derive_seed, seed_global


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
) -> list[AttackResult]:
    """Run every attack at every size on the examples that are right without one (`clean`, booleans (n,))."""
    results = []
    nothing = {"broken": np.zeros(0, bool), "z": np.zeros(0, np.float32), **dict.fromkeys(COST, np.zeros(0))}
    for name, _, eps in plan.searches:
        settings = {"attack": name, "eps": eps, "steps": plan.steps, "seed": plan.seed}
        work = partial(_attack_batch, eval_model, images, classes, plan, name, eps)
        rows = clean.nonzero().flatten()
        columns = cache.measure(eval_model, f"unforeseen-{name}-{eps:g}", settings, rows, work) or nothing
        results.append(AttackResult.of(name, "gradient", clean, columns, settings=settings))
    return results


def add_unforeseen(results: EvalResults, plan: UnforeseenPlan, attacks: Sequence[AttackResult]) -> None:
    """Put the attacks, one a search of the plan, into the results."""
    robust = np.tile(results.clean, (len(attacks), 1))
    for mask, (name, k, _), result in zip(robust, plan.searches, attacks, strict=True):
        mask[result.rows] = False
        results.examples |= {
            f"unforeseen.{name}.{k}.rows": result.rows,
            f"unforeseen.{name}.{k}.z": result.kept["z"],
        }
    results.outcomes["unforeseen_robust"] = robust.reshape(len(plan.attacks), -1, len(results.clean))
    results.facts["unforeseen"] = {
        "data": plan.data,
        "sizes_of": plan.sizes,
        "steps": plan.steps,
        "attacks": [{"name": name, "unit": DISTORTIONS[name].unit} for name in plan.attacks],
        **total_cost(attacks),
    }


def _attack_batch(
    eval_model: EvalModel, images: Images, classes: int, plan: UnforeseenPlan, name: str, eps: float, rows: Tensor
) -> dict[str, Tensor]:
    """The last z of one search for the examples `rows`, and whether it breaks them."""
    x, y = eval_model.load(images, rows)
    distortion = _distortion(images, plan, name, eps, x, rows)
    # For networks that draw numbers of their own.
    seed_global(derive_seed(plan.seed, "unforeseen", name, f"{eps:g}", int(rows[0])), x.device)
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
) -> list[AttackResult]:
    """The results that the kept z prove."""
    results = []
    for name, k, eps in plan.searches:
        rows, z = _read(examples, f"unforeseen.{name}.{k}", len(clean), DISTORTIONS[name], eps, images)
        broken = np.zeros(len(rows), bool)
        for part in torch.arange(len(rows)).split(eval_model.batch_size) if len(rows) else ():
            index = torch.from_numpy(rows)[part]
            broken[part] = judge(eval_model, images, plan, name, eps, index, torch.from_numpy(z)[part]).cpu().numpy()
        broken &= clean.numpy()[rows]
        results.append(AttackResult(name, "gradient", clean, clean, rows=rows[broken], kept={"z": z[broken]}))
    return results


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
