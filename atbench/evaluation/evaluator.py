"""One evaluation, top to bottom: clean accuracy, PGD over k and ε, further attacks, other norms, audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atbench.attacks import Attack
from atbench.data import Images
from atbench.data.corruptions import CORRUPTIONS
from atbench.evaluation.attack_result import Array, AttackResult
from atbench.evaluation.attack_runner import AttackRunner, SweepResult
from atbench.evaluation.audit.audit import run_audit
from atbench.evaluation.audit.outputs import randomness_source
from atbench.evaluation.audit.verdicts import Check
from atbench.evaluation.corruption_accuracy import corruption_accuracy
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.members import MemberTransfer, attack_members, ensemble_members
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.rejection import (
    CONFIDENT,
    RejectionPlan,
    RejectionResult,
    confidence_threshold,
    softmax_confidence,
)
from atbench.evaluation.result_cache import ResultCache
from atbench.evaluation.unforeseen import UnforeseenPlan, UnforeseenResult, attack_unforeseen


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


@dataclass
class EvalResults:
    """Results of an evaluation, filled in as it runs.

    clean, logits: (n,) and (n, K), without an attack. sweep: PGD over k and ε. attacks: the further attacks by name.
    norms: PGD in other norms. corruptions: figures and masks. members: transfer between an ensemble's members.
    unforeseen: distortions that were not trained for.
    random: the random source of a network that does not answer an image twice alike (`randomness_source`).
    split_size: how many images the split has. checks: of the audit.
    """

    plan: Plan
    images: Images
    clean: Tensor
    logits: Array
    sweep: SweepResult | None = None
    attacks: dict[str, AttackResult] = field(default_factory=dict)
    norms: dict[str, SweepResult] = field(default_factory=dict)
    corruptions: tuple[dict[str, Any], Array] | None = None
    members: MemberTransfer | None = None
    unforeseen: UnforeseenResult | None = None
    rejection: RejectionResult | None = None
    random: str | None = None
    split_size: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def robust(self) -> Tensor:
        """(n,) booleans: right without an attack and under every attack of the main threat so far."""
        robust = self.clean.clone()
        if self.sweep is not None:
            robust &= self.sweep.robust
        for result in self.attacks.values():
            robust &= ~result.broken
        return robust

    def by_attack(self) -> dict[str, AttackResult]:
        """All attacks by name, PGD-k one by one."""
        results = dict(self.attacks)
        if self.sweep is not None:
            for k in self.plan.steps:
                broken = self.clean & (self.sweep.main.first_broken <= k)
                results[f"pgd-{k}"] = AttackResult(f"pgd-{k}", "gradient", self.clean, broken)
        return results


def evaluate_model(
    eval_model: EvalModel,
    images: Images,
    plan: Plan,
    cache: ResultCache | None = None,
    on_progress: Callable[[EvalResults], None] = lambda results: None,
) -> EvalResults:
    """Run the plan; `on_progress` is called after each attack with the results so far."""
    runner, results = begin_evaluation(eval_model, images, plan, cache or ResultCache(None, {}))
    images, clean = results.images, results.clean
    if plan.steps:
        results.sweep = runner.run_sweep(plan.threat, plan.eps_grid, plan.eps_steps)
        on_progress(results)
    for name, (attack, settings) in plan.attacks.items():
        tried = results.robust if plan.sequential else clean
        results.attacks[name] = runner.run_attack(name, attack, settings, tried)
        on_progress(results)
    if plan.reject:
        results.attacks[CONFIDENT] = runner.run_attack(CONFIDENT, plan.reject.attack, plan.reject.settings, clean)
        results.rejection = evaluate_rejection(runner, plan.reject)
        on_progress(results)
    for name, threat in plan.norms.items():
        results.norms[name] = runner.run_sweep(threat, [], threat.steps)
    if plan.members and ensemble_members(eval_model.network):
        results.members = attack_members(eval_model, images, plan.member_attack, runner.cache)
    if plan.unforeseen:
        classes = results.logits.shape[1]
        results.unforeseen = attack_unforeseen(eval_model, images, clean, classes, plan.unforeseen, runner.cache)
    if plan.audit:
        eval_model.activity = "audit"
        results.checks = run_audit(eval_model, images, clean, plan.threat, results.by_attack(), plan.audit)
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
    results = EvalResults(plan, images, clean, logits, random=random, split_size=split_size)
    if plan.corruptions:  # first: images that no corruption is defined for are refused before hours of attacks
        results.corruptions = corruption_accuracy(eval_model, images, list(CORRUPTIONS), plan.corruptions, seed)
    return AttackRunner(eval_model, images, clean, cache, seed), results


def evaluate_rejection(runner: AttackRunner, plan: RejectionPlan) -> RejectionResult:
    """The threshold from the held-out images, and the plan's attack on the images that are wrong without one."""
    held_out = held_out_confidences(runner, plan.held)
    misclassified = runner.run_attack(CONFIDENT, plan.attack, plan.settings, ~runner.clean)
    return RejectionResult(plan.share, confidence_threshold(held_out, plan.share), held_out, misclassified)


def held_out_confidences(runner: AttackRunner, images: Images) -> Array:
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
