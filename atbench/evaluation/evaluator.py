"""One evaluation, top to bottom: clean accuracy, PGD over k and ε, further attacks, other norms, audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.attacks import Attack
from atbench.data import Images, stratified_subset
from atbench.data.corruptions import CORRUPTIONS
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.attack_runner import AttackRunner
from atbench.evaluation.audit.audit import run_audit
from atbench.evaluation.audit.outputs import randomness_source
from atbench.evaluation.audit.verdicts import Check
from atbench.evaluation.corruption_accuracy import corruption_accuracy
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import EvalResults
from atbench.evaluation.members import add_members, attack_members, ensemble_members, members_right
from atbench.evaluation.metrics import Array, confusion_counts
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.rejection import (
    CONFIDENT,
    MISCLASSIFIED,
    RejectionPlan,
    confidence_threshold,
    share_figures,
    softmax_confidence,
)
from atbench.evaluation.result_cache import ResultCache
from atbench.evaluation.unforeseen import UnforeseenPlan, add_unforeseen, attack_unforeseen

SHOWN = 8


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    threat: the main PGD. steps: the k that are reported of its trajectory; empty for no sweep. eps_grid: radii as
        multiples of its ε, each with `eps_steps` steps. limit: how many images to attack, None for all.
    attacks: further attacks in the same ball, by name, each with the settings that it was made from. sequential: each
        runs only on what is still robust, as in AutoAttack; otherwise on all that is right without an attack.
    audit: how many examples the audit uses; 0 for no audit.
    norms: PGD in other norms, by name. corruptions: severities of the common corruptions.
    members: whether each member of an ensemble is attacked and its images are judged by the others.
    unforeseen: distortions that were not trained for. reject: rejection of unsure predictions.
    examples: whether adversarial images are kept. notes: warnings about how the plan differs from what was asked for.
    """

    threat: PGDConfig
    steps: Sequence[int]
    eps_grid: Sequence[float]
    eps_steps: int
    limit: int | None = None
    attacks: Mapping[str, tuple[Attack, Mapping[str, Any]]] = field(default_factory=dict)
    sequential: bool = False
    audit: int = 0
    norms: Mapping[str, PGDConfig] = field(default_factory=dict)
    corruptions: Sequence[int] = ()
    members: bool = False
    unforeseen: UnforeseenPlan | None = None
    reject: RejectionPlan | None = None
    examples: bool = True
    notes: Sequence[str] = ()

    @property
    def member_attack(self) -> PGDConfig:
        """PGD on a member of an ensemble: the main threat's, from one start."""
        return replace(self.threat, restarts=1)


def evaluate_model(
    eval_model: EvalModel,
    images: Images,
    plan: Plan,
    cache: ResultCache | None = None,
    on_progress: Callable[[EvalResults], None] = lambda results: None,
) -> EvalResults:
    """Run the plan; `on_progress` is called after each attack with the results so far."""
    runner, results = begin_evaluation(eval_model, images, plan, cache or ResultCache(None, {}))
    images, clean, by_name = runner.images, runner.clean, dict[str, AttackResult]()
    names = [*(["pgd"] if plan.steps else []), *plan.attacks, *([CONFIDENT] if plan.reject else [])]
    stages = {name: f"attack {number}/{len(names)}" for number, name in enumerate(names, 1)}

    def run(name: str, attack: Attack, settings: Mapping[str, Any], tried: Tensor) -> None:
        eval_model.stage = stages[name]
        by_name[name] = runner.run_attack(name, attack, settings, tried)
        results.add_attack(by_name[name])

    if plan.steps:
        eval_model.stage = stages["pgd"]
        radii = runner.run_sweep(plan.threat, plan.eps_grid, plan.eps_steps)
        results.add_sweep(radii)
        for k in plan.steps:  # one by one, for the audit
            broken = clean & (radii[1.0].first_broken <= k)
            by_name[f"pgd-{k}"] = AttackResult(f"pgd-{k}", "gradient", clean, broken)
        on_progress(results)
    for name, (attack, settings) in plan.attacks.items():
        run(name, attack, settings, torch.from_numpy(results.robust) if plan.sequential else clean)
        on_progress(results)
    if plan.reject:
        run(CONFIDENT, plan.reject.attack, plan.reject.settings, clean)
        misclassified = runner.run_attack(CONFIDENT, plan.reject.attack, plan.reject.settings, ~clean)
        held_out = held_out_confidences(runner, plan.reject.held)
        threshold = confidence_threshold(held_out, plan.reject.share)
        add_rejection(results, plan.reject, held_out, threshold, replace(misclassified, name=MISCLASSIFIED))
        on_progress(results)
    eval_model.stage = ""
    for name, threat in plan.norms.items():
        results.add_sweep(runner.run_sweep(threat, [], threat.steps), name)
    if plan.members and ensemble_members(eval_model.network):
        right = members_right(eval_model, images)
        attacks = attack_members(eval_model, images, plan.member_attack, right, runner.cache)
        add_members(results, plan.member_attack, right, attacks)
    if plan.unforeseen:
        classes = results.outcomes["logits_clean"].shape[1]
        searches = attack_unforeseen(eval_model, images, clean, classes, plan.unforeseen, runner.cache)
        add_unforeseen(results, plan.unforeseen, searches)
    checks = list[Check]()
    if plan.audit:
        eval_model.stage = "audit"
        eval_model.doing("")
        checks = run_audit(eval_model, images, clean, plan.threat, by_name, plan.audit)
    end_evaluation(results, images, checks)
    return results


def begin_evaluation(
    eval_model: EvalModel, images: Images, plan: Plan, cache: ResultCache
) -> tuple[AttackRunner, EvalResults]:
    """What is measured without an attack, and what runs the attacks on the images that the plan chooses."""
    seed, split_size = plan.threat.seed, len(images)
    images = images if plan.limit is None else images.sample(plan.limit)
    random = randomness_source(eval_model, images)
    eval_model.random = random is not None
    clean, logits = clean_predictions(eval_model, images, cache, seed)
    results = new_results(plan, images, clean, logits)
    results.facts |= {"of": split_size, "random": random}
    if plan.corruptions:  # first: images that no corruption is defined for are refused before hours of attacks
        figures, masks = corruption_accuracy(eval_model, images, list(CORRUPTIONS), plan.corruptions, seed)
        results.facts["corruptions"], results.outcomes["corrupted"] = figures, masks
    return AttackRunner(eval_model, images, clean, cache, seed), results


def new_results(plan: Plan, images: Images, clean: Tensor, logits: Array) -> EvalResults:
    """The results of a plan before any attack: (n,) booleans and logits (n, K) without one."""
    facts = {
        "plan": {
            "threat": asdict(plan.threat),
            "steps": list(plan.steps),
            "eps_grid": list(plan.eps_grid),
            "eps_steps": plan.eps_steps,
            "sequential": plan.sequential,
            "multiples": [],
            "norms": {name: asdict(threat) for name, threat in plan.norms.items()},
        },
        "notes": list(plan.notes),
        "attacks": [],
        "seconds": 0.0,
        "forward_passes": len(images),
        "gradient_passes": 0,
    }
    outcomes = {
        "index": images.indices(torch.arange(len(images))).numpy(),
        "label": images.y.cpu().numpy(),
        "clean": clean.numpy(),
        "logits_clean": logits,
        "eps_grid": np.zeros(0),
        "eps_robust": np.zeros((0, len(images)), bool),
    }
    if plan.reject:
        outcomes["confidence_adversarial"] = np.full(len(images), np.nan)
    return EvalResults(facts, outcomes)


def add_rejection(
    results: EvalResults, plan: RejectionPlan, held_out: Array, threshold: float, misclassified: AttackResult
) -> None:
    """Put a rejection into the results: confidences of the right predictions on held-out images, their threshold,
    and the plan's attack on the images that are wrong without one.
    """
    accepted = held_out >= threshold
    figures = share_figures(accepted, np.ones_like(accepted))
    results.add_misclassified(misclassified)
    given = {"share": plan.share, "threshold": threshold, "held_out": figures}
    results.facts["reject"] = {**given, **misclassified.cost}


def end_evaluation(results: EvalResults, images: Images, checks: Sequence[Check]) -> None:
    """The columns that follow from all attacks: worst case, confusions, up to SHOWN pictures of broken examples, every
    class in proportion; and the audit's checks.
    """
    columns, label, x_adv = results.outcomes, results.outcomes["label"], dict[int, Array]()
    columns["robust"] = results.robust
    predicted = columns["logits_clean"].argmax(axis=1)
    broken = columns.get("logits_adversarial", columns["logits_clean"]).argmax(axis=1)
    if "logits_adversarial" in columns:
        names = [str(k) for k in range(columns["logits_clean"].shape[1])]
        columns["confusion"] = np.array(confusion_counts(label, broken, names)["counts"])
    for name in reversed(results.main):
        pairs = zip(results.examples[f"{name}.rows"].tolist(), results.examples[f"{name}.x_adv"], strict=True)
        x_adv.update(pairs)
    rows = np.array(sorted(x_adv), np.int64)
    shown = rows[stratified_subset(torch.from_numpy(label[rows]), SHOWN).numpy()]
    none = np.zeros((0, *images.x.shape[1:]), np.float32)
    columns |= {
        "shown_index": shown,
        "shown_x": images.floats(torch.from_numpy(shown).to(images.x.device)).cpu().numpy(),
        "shown_adv": np.stack([x_adv[int(row)] for row in shown]) if len(shown) else none,
        "shown_clean": predicted[shown],
        "shown_broken": broken[shown],
    }
    if checks:
        columns["audit"] = np.array([json.dumps(asdict(check)) for check in checks])


def held_out_confidences(runner: AttackRunner, images: Images) -> Array:
    """Confidences (m,) of the right predictions on held-out images."""
    right, logits = clean_predictions(runner.eval_model, images, runner.cache, runner.seed, "held_out")
    return softmax_confidence(logits[right.numpy()])


def clean_predictions(
    eval_model: EvalModel, images: Images, cache: ResultCache, seed: int, name: str = "clean"
) -> tuple[Tensor, Array]:
    """(n,) booleans, which images are right without an attack, and the logits (n, K). `name` is for the cache."""

    def predict(rows: Tensor) -> dict[str, Tensor]:
        x, y = eval_model.load(images, rows)
        with eval_model.ready(), torch.no_grad():
            logits = eval_model.seeded_logits(x, images.indices(rows), seed, name)
        return {"right": logits.argmax(dim=1) == y, "logits": logits.float()}

    columns = cache.measure(eval_model, name, {}, torch.arange(len(images)), predict)
    return torch.from_numpy(columns["right"]), columns["logits"]
