"""Evaluations made up example by example and written by the program's own code: no network, no search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.attacks import AscentAttack, Attack, GradientAttack
from atbench.data import Images
from atbench.evaluation import AttackResult, EvalResults, PGDConfig, Plan, record_files, summarize
from atbench.evaluation.attack_result import UNBROKEN
from atbench.evaluation.evaluator import end_evaluation, new_results

#: `make_run(name, seed=0, robust=0.6, ...)`: a run folder.
MakeRun = Callable[..., Path]
N, CLASSES = 60, 10
STEPS = (1, 5, 20, 50)
LABEL = np.arange(N) % CLASSES
# AutoAttack's four at the authors' effort, and how many examples each breaks of those that are left.
STANDARD: dict[str, dict[str, Any]] = {
    "apgd_ce": {"_target_": "atbench.attacks.gradient.apgd.APGD", "objective": "ce", "steps": 100, "breaks": 3},
    "apgd_t": {"_target_": "atbench.attacks.gradient.apgd.TargetedAPGD", "steps": 100, "targets": 9, "breaks": 2},
    "fab_t": {"_target_": "atbench.attacks.min_norm.fab.FAB", "steps": 100, "targets": 9, "breaks": 1, "minimal": True},
    "square": {"_target_": "atbench.attacks.black_box.square.Square", "steps": 5000, "breaks": 0},
}


@dataclass(frozen=True)
class Made:
    """What a made-up evaluation is to say. `robust`: the share that PGD leaves right; `attacks`: name to settings."""

    robust: float = 0.6
    seed: int = 0
    eps: float = 0.2
    steps: tuple[int, ...] = STEPS
    restarts: int = 1
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sequential: bool = False
    norms: tuple[str, ...] = ()
    audit: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def write(folder: Path, name: str, epoch: int, made: Made) -> None:
    """The record, its outcomes and its images, as `atbench eval` leaves them."""
    evaluation = _evaluation(made)
    content = {
        "schema": 3, "checkpoint": name, "epoch": epoch, "split": "test", "weights_sha256": "a" * 64,
        "data_sha256": "b" * 64, "versions": {"torch": "2.15.0"}, "complete": True, **summarize(evaluation),
    }  # fmt: skip
    content["warnings"] = list(made.warnings)
    content["audit"] = made.audit or content["audit"]  # without one: as of an evaluation that was not audited
    record_files.save_record(folder, name, content, evaluation.outcomes, evaluation.examples, {"made": name})


def _evaluation(made: Made) -> EvalResults:
    rng = np.random.default_rng(made.seed + 10)
    images = Images(torch.from_numpy(rng.integers(0, 256, (N, 1, 8, 8), np.uint8)), torch.from_numpy(LABEL))
    clean = torch.arange(N) < N - 2
    threat = PGDConfig("linf", made.eps, 0.05, max(made.steps, default=20), restarts=made.restarts, seed=made.seed)
    attacks = {name: (_attack(made.eps), settings) for name, settings in made.attacks.items()}
    norms = {norm: PGDConfig(norm, 1.0, 0.1, 20) for norm in made.norms}
    grid = [0.0, 0.5, 1.0, 2.0] if made.steps else []
    plan = Plan(threat, made.steps, grid, 20, attacks=attacks, sequential=made.sequential, norms=norms)
    whole = new_results(plan, images, clean, _logits(rng, ~clean))
    if made.steps:
        whole.add_sweep(_sweep(rng, images, clean, threat, round(made.robust * N)))
    for name, settings in made.attacks.items():
        left = torch.from_numpy(whole.robust)
        tried = left if made.sequential else clean
        whole.add_attack(_result(rng, images, name, tried, _broken(left, tried, settings), settings, made.eps))
    for at, norm in enumerate(norms):
        first = torch.where(clean, torch.where(torch.arange(N) % (at + 3) == 0, 2, UNBROKEN), 0)
        result = _result(rng, images, "pgd", clean, clean & (first == 2), {}, 1.0)
        whole.add_sweep({1.0: replace(result, first_broken=first)}, norm)
    end_evaluation(whole, images, [])
    return whole


def _attack(eps: float) -> Attack:
    return AscentAttack(GradientAttack("linf", eps, 1, eps))


def _broken(left: Tensor, tried: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Of what is left the first `breaks`; and of what was broken before, every second where the attack ran on it."""
    rows = left.nonzero().flatten()[: settings["breaks"]]
    broken = tried & ~left & (torch.arange(N) % 2 == 0)
    broken[rows] = True
    return broken


def _logits(rng: np.random.Generator, wrong: Tensor) -> np.ndarray:
    logits = rng.normal(size=(N, CLASSES)).astype(np.float32)
    logits[np.arange(N), (LABEL + wrong.numpy()) % CLASSES] = 6
    return logits


def _result(
    rng: np.random.Generator, images: Images, name: str, tried: Tensor, broken: Tensor, settings: Mapping[str, Any],
    eps: float,
) -> AttackResult:  # fmt: skip
    rows = broken.nonzero().flatten()
    x = images.floats(rows).numpy()
    x_adv = np.clip(x + eps * rng.choice([-1, 1], x.shape), 0, 1).astype(np.float32)
    logits = np.where(tried.numpy()[:, None], _logits(rng, broken), np.nan)
    far = np.where(tried, np.where(broken, 0.5 * eps + 0.001 * np.arange(N), np.inf), np.nan)
    access = "queries" if name == "square" else "gradient"
    own = {key: value for key, value in settings.items() if key not in ("breaks", "minimal")}
    return AttackResult(
        name, access, tried, broken, 1.5, 1000, 900, {"norm": "linf", "eps": eps, **own},
        settings.get("minimal", False), rows.numpy(), {"x_adv": x_adv, "eight": np.arange(len(rows)) % 3 > 0}, logits,
        far,
    )  # fmt: skip


def _sweep(
    rng: np.random.Generator, images: Images, clean: Tensor, threat: PGDConfig, right: int
) -> dict[float, AttackResult]:
    """PGD at half, once and twice ε: what a radius breaks, a larger one breaks no later."""
    place = torch.arange(N)
    main = torch.where(place < right, UNBROKEN, torch.from_numpy(rng.choice([1, 3, 7, 15, 30], N)))
    small = torch.where(place % 2 == 0, main, UNBROKEN)
    large = torch.where(place < right // 2, UNBROKEN, main.clamp(max=4))
    radii, before = dict[float, AttackResult](), torch.where(clean, UNBROKEN, 0)
    for multiple, first in ((0.5, small), (1.0, main), (2.0, large)):
        first = torch.where(clean, first, 0)
        fresh = (first < before) & clean
        result = _result(rng, images, "pgd", before > 1, fresh, {}, multiple * threat.eps)
        radii[multiple] = replace(result, first_broken=first)
        before = first
    return radii
