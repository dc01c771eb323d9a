"""An evaluation put together again from what it kept: nothing is searched, every kept image is judged anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atbench.data import Images
from atbench.data.corruptions import CORRUPTIONS
from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.attack_runner import UNKNOWN, Found, Level, Suite, Surface
from atbench.evaluation.audit.outputs import randomness
from atbench.evaluation.audit.verdicts import Check
from atbench.evaluation.corruption_accuracy import corrupted
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.evaluator import Evaluation, Plan, clean_logits, held_out
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.rejection import CONFIDENT, Reject, Rejection, threshold
from atbench.evaluation.result_cache import ResultCache

Array = NDArray[Any]


def rebuilt(
    eval_model: EvalModel, images: Images, plan: Plan, outcomes: Mapping[str, Array], images_kept: Mapping[str, Array]
) -> Evaluation:
    """The evaluation of `plan` as its kept images prove it.

    What no image is kept of comes from the `outcomes`: logits of the tries that broke nothing, distances of what lies
    outside the ball, the audit's checks.
    """
    of = len(images)
    images = images if plan.limit is None else images.sample(plan.limit)
    random = randomness(eval_model, images)
    eval_model.random = random is not None
    clean, logits = clean_logits(eval_model, images, ResultCache(None, {}), plan.threat.seed)
    suite = Suite(eval_model, images, clean, ResultCache(None, {}), plan.threat.seed)
    judge = _Judge(suite, images_kept, outcomes, logits.shape[1])
    again = Evaluation(plan, images, clean, logits, random=random, of=of)
    if plan.corruptions:
        again.corrupted = corrupted(eval_model, images, list(CORRUPTIONS), plan.corruptions, plan.threat.seed)
    if plan.steps:
        again.surface = judge.surface("pgd", plan.threat, sorted({*plan.eps_grid, 1.0} - {0.0}), plan.eps_steps)
    attacks = {**plan.attacks, **({CONFIDENT: (plan.reject.attack, plan.reject.settings)} if plan.reject else {})}
    for name, (attack, settings) in attacks.items():
        tried = again.robust if plan.sequential and name != CONFIDENT else clean
        facts = {"norm": attack.norm, "eps": attack.eps, **settings}
        again.found[name] = judge.found(name, tried, facts, attack.access, attack.minimal)
    for name, threat in plan.norms.items():
        again.norms[name] = judge.surface(f"pgd_{name}", threat, [1.0], threat.steps)
    if plan.reject:
        again.rejection = _rejection(judge, plan.reject, plan.threat)
    again.checks = _checks(outcomes.get("audit", np.zeros(0, str)))
    return again


def _rejection(judge: _Judge, plan: Reject, threat: PGDConfig) -> Rejection:
    held = held_out(judge.suite, plan.held)
    facts = {"norm": threat.norm, "eps": threat.eps, **plan.settings}
    mistaken = judge.found("mistaken", ~judge.suite.clean, facts, plan.attack.access, name_of_draws=CONFIDENT)
    return Rejection(plan.share, threshold(held, plan.share), held, mistaken)


def _checks(texts: Array) -> list[Check]:
    """The audit's checks; none where they cannot be read."""
    try:
        return [Check(**json.loads(str(text))) for text in texts.ravel()]
    except (ValueError, TypeError):
        return []


class _Judge:
    """Turns kept images back into outcomes."""

    def __init__(
        self, suite: Suite, images_kept: Mapping[str, Array], outcomes: Mapping[str, Array], classes: int
    ) -> None:
        self.suite, self.kept, self.outcomes, self.classes = suite, images_kept, outcomes, classes

    def found(
        self,
        name: str,
        tried: Tensor,
        facts: Mapping[str, Any],
        access: str = "",
        minimal: bool = False,
        name_of_draws: str = "",
    ) -> Found:
        eval_model, n = self.suite.eval_model, len(tried)
        rows, x_adv = self._images(name, n)
        parts: list[dict[str, Tensor]] = []
        with eval_model.ready():
            for places in torch.arange(len(rows)).split(eval_model.batch_size):
                where = torch.from_numpy(rows)[places]
                x, y = eval_model.load(self.suite.images, where)
                given = x_adv[places].to(device=x.device, dtype=x.dtype)
                parts.append(self.suite.judged(name_of_draws or name, where, x, y, given, facts["norm"], facts["eps"]))
        columns = {key: torch.cat([part[key].cpu() for part in parts]).numpy() for key in (parts[0] if parts else {})}
        # An attack's answer is mended before it is judged; what was kept must be sound.
        sound = torch.isfinite(x_adv.flatten(1)).all(dim=1).numpy()
        right = columns.get("broken", np.zeros(0, bool)) & sound & tried.numpy()[rows]
        broken = torch.zeros_like(tried)
        broken[torch.from_numpy(rows[right])] = True
        logits, distance = self._stored("logits_adversarial", (n, self.classes)), self._stored(f"distance_{name}", (n,))
        distance[~tried.numpy()] = np.nan
        if parts:
            logits[rows], distance[rows] = columns["logits"], columns["distance"]
        outcome = Outcome(name, access, tried, broken)
        eight = columns.get("eight", np.zeros(0, bool))
        return Found(outcome, rows[right], x_adv.numpy()[right], eight[right], logits, distance, dict(facts), minimal)

    def surface(self, name: str, threat: PGDConfig, multiples: list[float], eps_steps: int) -> Surface:
        levels: dict[float, Level] = {}
        first = torch.where(self.suite.clean, UNKNOWN, 0)
        for position, multiple in enumerate(multiples):
            facts = {"norm": threat.norm, "eps": multiple * threat.eps}
            level = f"{name}.{position}"
            found = self.found(level, self.suite.clean, facts, name_of_draws=threat.norm)
            rows, steps = self.kept.get(f"{level}.rows"), self.kept.get(f"{level}.step")
            first = first.clone()
            if rows is not None and steps is not None and rows.shape == steps.shape:
                when = dict(zip(rows.tolist(), steps.tolist(), strict=True))
                for row in found.rows.tolist():
                    first[row] = min(int(first[row]), int(when[row]))
            levels[multiple] = Level(found, first)
        return Surface(threat, levels, eps_steps)

    def _images(self, name: str, n: int) -> tuple[Array, Tensor]:
        """Rows and images that an attack kept; none where they do not belong together."""
        shape = tuple(self.suite.images.x.shape[1:])
        nothing = np.zeros(0, np.int64), torch.zeros((0, *shape))
        rows, x_adv = self.kept.get(f"{name}.rows"), self.kept.get(f"{name}.x_adv")
        if rows is None or x_adv is None or rows.dtype.kind != "i" or rows.ndim != 1:
            return nothing
        if x_adv.shape != (len(rows), *shape) or bool(((rows < 0) | (rows >= n)).any()):
            return nothing
        return rows, torch.from_numpy(x_adv.astype(np.float32))

    def _stored(self, name: str, shape: tuple[int, ...]) -> Array:
        """A float array of the outcomes, a copy; NaN where it is not of this shape."""
        found = self.outcomes.get(name)
        if found is None or found.shape != shape or found.dtype.kind != "f":
            return np.full(shape, np.nan)
        return found.copy()
