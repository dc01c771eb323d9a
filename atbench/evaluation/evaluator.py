"""One evaluation, top to bottom: clean, PGD over k and ε, further attacks, other norms, and an audit of all that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from atbench.attacks import Attack
from atbench.data import Images
from atbench.data.corruptions import CORRUPTIONS
from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.attack_runner import UNKNOWN, Found, Suite, Surface
from atbench.evaluation.audit.audit import Check, audit
from atbench.evaluation.audit.outputs import randomness
from atbench.evaluation.corruption_accuracy import corrupted
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.rejection import CONFIDENT, Reject, Rejection, confidence, threshold
from atbench.evaluation.result_cache import ResultCache

Array = NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    threat: the main PGD; `steps`: those reported of its trajectory, none for no sweep; `eps_grid`: radii as multiples
        of its ε, each with `eps_steps` steps.
    attacks: further attacks in the same ball, by name, each with the settings that it was made from. `sequential`: each
        runs on what the ones before left right, as AutoAttack does; otherwise on all that is right without attack.
    audit: on how many examples the evaluation itself is examined; 0: not.
    norms: threats of other norms, by name. corruptions: severities at which all corruptions are tried.
    reject: a share of confident predictions to accept, and the attack that knows of it. examples: whether adversarial
    images are kept. notes: how it differs from what was asked for.
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
    reject: Reject | None = None
    examples: bool = True
    notes: Sequence[str] = ()


@dataclass
class Evaluation:
    """Everything that was found, as it grows.

    logits: (n, K) without an attack. surface: PGD over k and ε; found: the further attacks by name; norms: PGD in other
    norms; corrupted: figures and masks of `corrupted`; rejection: the threshold, and what is confidently wrong; random:
    where a network that answers at random has its numbers from; of: how many images the split has; checks: the
    audit's.
    """

    plan: Plan
    images: Images
    clean: Tensor
    logits: Array
    surface: Surface | None = None
    found: dict[str, Found] = field(default_factory=dict)
    norms: dict[str, Surface] = field(default_factory=dict)
    corrupted: tuple[dict[str, Any], Array] | None = None
    rejection: Rejection | None = None
    random: str | None = None
    of: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def robust(self) -> Tensor:
        """(n,) booleans: right without an attack and under every attack of the main threat that has run."""
        left = self.clean.clone()
        if self.surface is not None:
            left &= self.surface.main.first == UNKNOWN
        for found in self.found.values():
            left &= ~found.outcome.broken
        return left

    def outcomes(self) -> dict[str, Outcome]:
        """All attacks, PGD-k one by one."""
        out = {name: found.outcome for name, found in self.found.items()}
        if self.surface is not None:
            first = self.surface.main.first
            for k in self.plan.steps:
                broken = self.clean & (first <= k)
                out[f"pgd-{k}"] = Outcome(f"pgd-{k}", "gradient", self.clean, broken)
        return out


def evaluate(
    eval_model: EvalModel,
    images: Images,
    plan: Plan,
    cache: ResultCache | None = None,
    told: Callable[[Evaluation], None] = lambda so_far: None,
) -> Evaluation:
    """Run the plan. `told` hears of everything that is finished: an interrupted evaluation has its figures, too."""
    cache = cache or ResultCache(None, {})
    of = len(images)
    if plan.limit is not None:
        images = images.sample(plan.limit)
    random = randomness(eval_model, images)
    eval_model.random = random is not None
    clean, logits = clean_logits(eval_model, images, cache, plan.threat.seed)
    suite = Suite(eval_model, images, clean, cache, plan.threat.seed)
    so_far = Evaluation(plan, images, clean, logits, random=random, of=of)
    if plan.corruptions:  # first: images that no corruption is defined for are refused before hours of attacks
        so_far.corrupted = corrupted(eval_model, images, list(CORRUPTIONS), plan.corruptions, plan.threat.seed)
    if plan.steps:
        so_far.surface = suite.surface(plan.threat, plan.eps_grid, plan.eps_steps)
        told(so_far)
    for name, (attack, settings) in plan.attacks.items():
        tried = so_far.robust if plan.sequential else clean
        so_far.found[name] = suite.attack(name, attack, settings, tried)
        told(so_far)
    if plan.reject:
        so_far.found[CONFIDENT] = suite.attack(CONFIDENT, plan.reject.attack, plan.reject.settings, clean)
        so_far.rejection = rejected(suite, plan.reject)
        told(so_far)
    for name, threat in plan.norms.items():
        so_far.norms[name] = suite.surface(threat, [], threat.steps)
    if plan.audit:
        eval_model.doing = "audit"
        so_far.checks = audit(eval_model, images, clean, plan.threat, so_far.outcomes(), plan.audit)
    return so_far


def rejected(suite: Suite, plan: Reject) -> Rejection:
    """The threshold of the held-out images, and the plan's attack on the images that are wrong without one."""
    held = held_out(suite, plan.held)
    mistaken = suite.attack(CONFIDENT, plan.attack, plan.settings, ~suite.clean)
    return Rejection(plan.share, threshold(held, plan.share), held, mistaken)


def held_out(suite: Suite, images: Images) -> Array:
    """Confidences of the right predictions on held-out images."""
    right, logits = clean_logits(suite.eval_model, images, suite.cache, suite.seed, "held_out")
    return confidence(logits[right.numpy()])


def clean_logits(
    eval_model: EvalModel, images: Images, cache: ResultCache, seed: int, name: str = "clean"
) -> tuple[Tensor, Array]:
    """Which images are right without an attack, and the logits of all. `name` is for the cache."""

    def work(rows: Tensor) -> dict[str, Tensor]:
        x, y = eval_model.load(images, rows)
        with eval_model.ready(), torch.no_grad():
            logits = eval_model.judged(x, images.indices(rows), seed, name)
        return {"right": logits.argmax(dim=1) == y, "logits": logits.float()}

    columns = cache.measure(eval_model, name, {}, torch.arange(len(images)), work)
    return torch.from_numpy(columns["right"]), columns["logits"]
