"""An evaluation recomputed from its kept images: no search, every image checked anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.data import Images
from atbench.evaluation import members, unforeseen
from atbench.evaluation.attack_result import UNBROKEN, AttackResult
from atbench.evaluation.attack_runner import AttackRunner
from atbench.evaluation.audit.verdicts import Check
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import EvalResults
from atbench.evaluation.evaluator import Plan, add_rejection, begin_evaluation, end_evaluation, held_out_confidences
from atbench.evaluation.field_checks import recorded_threshold
from atbench.evaluation.members import ensemble_members
from atbench.evaluation.metrics import Array
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.rejection import CONFIDENT, MISCLASSIFIED, confidence_threshold
from atbench.evaluation.result_cache import ResultCache


def recompute_results(
    eval_model: EvalModel,
    images: Images,
    plan: Plan,
    record: Mapping[str, Any],
    outcomes: Mapping[str, Array],
    examples: Mapping[str, Array],
) -> EvalResults:
    """The results of `plan` as its kept images (`examples`) prove them.

    What no image is kept of comes from the `outcomes`: logits of the tries that broke nothing, distances of what lies
    outside the ball, the audit's checks; and from the `record` a threshold that rounding may have moved.
    """
    runner, results = begin_evaluation(eval_model, images, plan, ResultCache(None, {}))
    images, clean = runner.images, runner.clean  # those of the plan: with a limit a sample of the split
    kept = _KeptImages(runner, examples, outcomes, results.outcomes["logits_clean"].shape[1])
    if plan.steps:
        results.add_sweep(kept.sweep("pgd", plan.threat, sorted({*plan.eps_grid, 1.0} - {0.0})))
    reject = plan.reject
    attacks = {**plan.attacks, **({CONFIDENT: (reject.attack, reject.settings)} if reject else {})}
    for name, (attack, settings) in attacks.items():
        tried = torch.from_numpy(results.robust) if plan.sequential and name != CONFIDENT else clean
        settings = {"norm": attack.norm, "eps": attack.eps, **settings}
        results.add_attack(replace(kept.result(name, tried, settings, attack.access), minimal=attack.minimal))
    if reject:
        held_out = held_out_confidences(runner, reject.held)
        settings = {"norm": plan.threat.norm, "eps": plan.threat.eps, **reject.settings}
        wrong = kept.result(MISCLASSIFIED, ~clean, settings, reject.attack.access, seed_name=CONFIDENT)
        threshold = recorded_threshold(record, confidence_threshold(held_out, reject.share))
        add_rejection(results, reject, held_out, threshold, wrong)
    for name, threat in plan.norms.items():
        results.add_sweep(kept.sweep(f"pgd_{name}", threat, [1.0]), name)
    if plan.members and (parts := ensemble_members(eval_model.network)):
        right = members.members_right(eval_model, images)
        made = [kept.images(f"member{number}", len(images)) for number in range(len(parts))]
        again = members.judge_again(eval_model, images, plan.member_attack, right, made)
        members.add_members(results, plan.member_attack, right, again)
    if plan.unforeseen:
        searches = unforeseen.judge_again(eval_model, images, clean, plan.unforeseen, examples)
        unforeseen.add_unforeseen(results, plan.unforeseen, searches)
    end_evaluation(results, images, _checks(outcomes.get("audit", np.zeros(0, str))))
    return results


def _checks(texts: Array) -> list[Check]:
    """The audit's checks; none where they cannot be read."""
    try:
        return [Check(**json.loads(str(text))) for text in texts.ravel()]
    except (ValueError, TypeError):
        return []


class _KeptImages:
    """The adversarial images that an evaluation kept, turned back into results."""

    def __init__(
        self, runner: AttackRunner, examples: Mapping[str, Array], outcomes: Mapping[str, Array], classes: int
    ) -> None:
        self.runner, self.examples, self.outcomes, self.classes = runner, examples, outcomes, classes

    def result(
        self, name: str, tried: Tensor, settings: Mapping[str, Any], access: str = "", seed_name: str = ""
    ) -> AttackResult:
        """The result of an attack; `seed_name` seeds a random network's numbers, by default the attack's name."""
        eval_model, n = self.runner.eval_model, len(tried)
        rows, x_adv = self.images(name, n)
        batches: list[dict[str, Tensor]] = []
        with eval_model.ready():
            for part in torch.arange(len(rows)).split(eval_model.batch_size):
                index = torch.from_numpy(rows)[part]
                x, y = eval_model.load(self.runner.images, index)
                image = x_adv[part].to(device=x.device, dtype=x.dtype)
                norm, eps = settings["norm"], settings["eps"]
                batches.append(self.runner.check_x_adv(seed_name or name, index, x, y, image, norm, eps))
        names = batches[0] if batches else ()
        columns = {key: torch.cat([batch[key].cpu() for batch in batches]).numpy() for key in names}
        # The evaluation repairs what an attack returns before it checks it; kept images must be finite.
        finite = torch.isfinite(x_adv.flatten(1)).all(dim=1).numpy()
        none = np.zeros(0, bool)
        right = columns.get("broken", none) & finite & tried.numpy()[rows]
        broken = torch.zeros_like(tried)
        broken[torch.from_numpy(rows[right])] = True
        logits, distance = self._stored("logits_adversarial", (n, self.classes)), self._stored(f"distance_{name}", (n,))
        distance[~tried.numpy()] = np.nan
        if batches:
            logits[rows], distance[rows] = columns["logits"], columns["distance"]
        return AttackResult(
            name, access, tried, broken, settings=settings, rows=rows[right], logits=logits, distance=distance,
            kept={"x_adv": x_adv.numpy()[right], "eight": columns.get("eight", none)[right]},
        )  # fmt: skip

    def sweep(self, name: str, config: PGDConfig, multiples: list[float]) -> dict[float, AttackResult]:
        """PGD over the radii that are `multiples` of the config's ε."""
        radii: dict[float, AttackResult] = {}
        first_broken = torch.where(self.runner.clean, UNBROKEN, 0)
        for position, multiple in enumerate(multiples):
            settings = {"norm": config.norm, "eps": multiple * config.eps}
            key = f"{name}.{position}"
            result = self.result(key, self.runner.clean, settings, seed_name=config.norm)
            rows, steps = self.examples.get(f"{key}.rows"), self.examples.get(f"{key}.step")
            first_broken = first_broken.clone()
            if rows is not None and steps is not None and rows.shape == steps.shape:
                step_of = dict(zip(rows.tolist(), steps.tolist(), strict=True))
                for row in result.rows.tolist():
                    first_broken[row] = min(int(first_broken[row]), int(step_of[row]))
            radii[multiple] = replace(result, first_broken=first_broken)
        return radii

    def images(self, name: str, n: int) -> tuple[Array, Tensor]:
        """Rows and images that an attack kept; none where they do not belong together."""
        shape = tuple(self.runner.images.x.shape[1:])
        empty = np.zeros(0, np.int64), torch.zeros((0, *shape))
        rows, x_adv = self.examples.get(f"{name}.rows"), self.examples.get(f"{name}.x_adv")
        if rows is None or x_adv is None or rows.dtype.kind != "i" or rows.ndim != 1:
            return empty
        if x_adv.shape != (len(rows), *shape) or bool(((rows < 0) | (rows >= n)).any()):
            return empty
        return rows, torch.from_numpy(x_adv.astype(np.float32))

    def _stored(self, name: str, shape: tuple[int, ...]) -> Array:
        """A float array of the outcomes, a copy; NaN where it is not of this shape."""
        array = self.outcomes.get(name)
        if array is None or array.shape != shape or array.dtype.kind != "f":
            return np.full(shape, np.nan)
        return array.copy()
