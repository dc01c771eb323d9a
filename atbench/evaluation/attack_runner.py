"""Runs attacks on a network and checks their adversarial images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.attacks import Attack, ball
from atbench.data import Images
from atbench.evaluation.attack_result import COST, UNBROKEN, AttackResult
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.metrics import Array
from atbench.evaluation.pgd_sweep import PGDConfig, run_pgd
from atbench.evaluation.result_cache import ResultCache
from atbench.runs.seeding import ExampleDraws, derive_seed, seed_global

#: What rounding may add to a norm: images are float32 in [0, 1].
SLACK = 1e-6
GREY_LEVELS = 255


def legal(x: Tensor, x_adv: Tensor, norm: str, eps: float) -> Tensor:
    """(B,) booleans: finite, in the box, and ‖x_adv − x‖ ≤ ε up to rounding."""
    flat = x_adv.flatten(1)
    inside = torch.isfinite(flat).all(dim=1) & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
    return inside & (ball(norm).norm(x_adv.double() - x.double()) <= eps * (1 + SLACK) + SLACK)


def round_to_8bit(x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv on the grid of 8-bit images, each pixel rounded towards x: no norm grows, so that it stays in the ball.

    `x` lies on the grid itself. Steps that are whole but for rounding count as whole.
    """
    shift = (x_adv - x).double() * GREY_LEVELS
    whole = torch.trunc(shift + shift.sign() * 100 * SLACK)
    return ((x.double() * GREY_LEVELS).round() + whole).div(GREY_LEVELS).clamp(0, 1).to(x.dtype)


class AttackRunner:
    """Runs attacks on the examples of one split; results go through the cache.

    clean: (n,) booleans, which examples are right without an attack.
    """

    def __init__(self, eval_model: EvalModel, images: Images, clean: Tensor, cache: ResultCache, seed: int) -> None:
        self.eval_model, self.images, self.clean, self.cache, self.seed = eval_model, images, clean, cache, seed

    def run_attack(self, name: str, attack: Attack, settings: Mapping[str, Any], tried: Tensor) -> AttackResult:
        """Run an attack on the examples `tried` (n,), booleans."""
        settings = {"norm": attack.norm, "eps": attack.eps, **settings}

        def attack_batch(rows: Tensor) -> dict[str, Tensor]:
            with self.eval_model.ready():
                x, y, x_adv = self.perturb(name, attack, rows)
                return self.check_x_adv(name, rows, x, y, x_adv, attack.norm, attack.eps)

        columns = self.cache.measure(self.eval_model, name, settings, tried.nonzero().flatten(), attack_batch)
        given = {"settings": settings, "minimal": attack.minimal}
        return AttackResult.of(name, attack.access, tried, columns or self._nothing(), **given)

    def perturb(self, name: str, attack: Attack, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and x_adv of the examples `rows`, one batch; call it inside `EvalModel.ready`."""
        x, y = self.eval_model.load(self.images, rows)
        # A network that draws numbers of its own draws the same ones the next time.
        seed_global(derive_seed(self.seed, name, int(rows[0])), x.device)
        return x, y, attack(self.eval_model, x, y, ExampleDraws(self.seed, name, index=self.images.indices(rows)))

    def run_sweep(self, config: PGDConfig, multiples: Sequence[float], eps_steps: int) -> dict[float, AttackResult]:
        """PGD over k and ε: ascending radii, each searched only for what is not broken yet, or could be earlier.

        `multiples` of the config's ε, the step size scaled along; its own ε takes all of its steps, the others
        `eps_steps`. Returns the results by multiple.
        """
        radii: dict[float, AttackResult] = {}
        first_broken, smaller = torch.where(self.clean, UNBROKEN, 0), list[dict[str, Any]]()
        for multiple in sorted({*multiples, 1.0} - {0.0}):
            steps = config.steps if multiple == 1 else eps_steps
            scaled = replace(config, eps=multiple * config.eps, step_size=multiple * config.step_size, steps=steps)
            radii[multiple] = self._run_radius(scaled, first_broken, smaller)
            first_broken, smaller = radii[multiple].first_broken, [*smaller, asdict(scaled)]
        return radii

    def _run_radius(self, config: PGDConfig, before: Tensor, smaller: list[dict[str, Any]]) -> AttackResult:
        """PGD at one radius; `before` (n,) is `first_broken` of the `smaller` radii."""
        eval_model = self.eval_model

        def attack_batch(rows: Tensor) -> dict[str, Tensor]:
            x, y = eval_model.load(self.images, rows)
            with eval_model.ready():
                seed_global(derive_seed(self.seed, "pgd", int(rows[0])), x.device)
                trajectory = run_pgd(eval_model, x, y, self.images.indices(rows), config, before[rows])
                checked = self.check_x_adv(config.norm, rows, x, y, trajectory.x_adv, config.norm, config.eps)
            earlier = trajectory.first < before[rows].clamp(max=config.steps + 1).to(trajectory.first.device)
            return {**checked, "broken": checked["broken"] & earlier, "first": trajectory.first}

        tried, settings = before > 1, asdict(config)
        rows = tried.nonzero().flatten()
        key, label = {**settings, "after": smaller}, f"pgd {config.norm}, eps {config.eps:g}"
        columns = self.cache.measure(eval_model, "pgd", key, rows, attack_batch, label)
        first_broken = before.clone()
        if columns:
            broken = torch.from_numpy(columns["broken"])
            first_broken[rows[broken]] = torch.from_numpy(columns["first"])[broken]
        given = {"settings": settings, "first_broken": first_broken}
        return AttackResult.of("pgd", "gradient", tried, columns or self._nothing(), **given)

    def check_x_adv(
        self, name: str, rows: Tensor, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps: float
    ) -> dict[str, Tensor]:
        """The network's answer to an attack's images as they will be stored: broken means misclassified and legal.

        `name` and `rows` seed the random numbers that a network draws itself.
        """
        x_adv = torch.where(torch.isfinite(x_adv), x_adv, x).float().to(x.dtype)
        places = self.images.indices(rows)
        with torch.no_grad():
            logits = self.eval_model.seeded_logits(x_adv, places, self.seed, name)
            rounded = self.eval_model.seeded_logits(round_to_8bit(x, x_adv), places, self.seed, name)
        wrong = logits.argmax(dim=1) != y
        broken = wrong & legal(x, x_adv, norm, eps)
        return {
            "broken": broken,
            "eight": broken & (rounded.argmax(dim=1) != y),
            "logits": logits.float(),
            "distance": torch.where(wrong, ball(norm).norm(x_adv.double() - x.double()), torch.inf),
            "x_adv": x_adv.float(),
        }

    def _nothing(self) -> dict[str, Array]:
        """The columns of an attack that ran on no example."""
        masks = dict.fromkeys(("broken", "eight"), np.zeros(0, bool))
        images = np.zeros((0, *self.images.x.shape[1:]), np.float32)
        return {**masks, "x_adv": images, "logits": np.zeros((0, 0)), **dict.fromkeys(("distance", *COST), np.zeros(0))}
