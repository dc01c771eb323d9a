"""Attacks that the audit runs itself, each at most once and only when a check needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atbench.attacks import LABEL_OBJECTIVES, GradientAttack, Objective
from atbench.attacks.base import wrong
from atbench.attacks.gradient.multitargeted import Targeted
from atbench.attacks.norms.lp_ball import ball
from atbench.data import Images
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig, broken_at, robust_after
from atbench.runs.seeding import ExampleDraws

STEPS = 20  # of PGD where a check names no other number
LONGEST = 100  # steps beyond which doubling is not tried
DRAWS = 100  # of uniform noise
RANGE_STEPS = 200
CLASSES = 9  # that a search for one class at a time goes to: all wrong ones of CIFAR-10


class AttackProbes:
    """PGD variants on the examples of `mask` (N,) over `images`; they return masks or first broken steps (N,).

    Unlike those of the sweep, which are monotone by construction, they are independent: every radius is searched from
    its own start on all examples, so that a wrong order shows.
    """

    def __init__(self, eval_model: EvalModel, images: Images, threat: PGDConfig, mask: Tensor) -> None:
        self.eval_model, self.images, self.mask = eval_model, images, mask
        self.threat = replace(threat, restarts=1)
        self.steps = min(threat.steps, LONGEST)
        self.broken = torch.zeros_like(mask)  # by any probe so far that stayed within ε
        self._cache: dict[PGDConfig, Tensor] = {}

    def cached_pgd(self, **changes: Any) -> Tensor:
        """(N,) first broken steps of the threat's PGD with some of its fields changed."""
        config = replace(self.threat, **changes)
        if config not in self._cache:
            self._cache[config] = self.run_pgd(config, self.mask)
        return self._cache[config]

    def run_pgd(self, config: PGDConfig, mask: Tensor) -> Tensor:
        """(N,) first broken steps of the examples `mask`, which may be more than those of the audit."""
        steps = broken_at(self.eval_model, self.images, config, mask)
        if config.eps <= self.threat.eps:
            self.broken = self.broken | (steps > 0)
        return steps

    def broken_by(self, steps: Tensor, k: int) -> Tensor:
        return self.mask & ~robust_after(steps, k)

    def pgd(self, k: int, objective: str) -> Tensor:
        """Broken by PGD-k. Of the threat's own objective one trajectory serves every k."""
        own = objective == self.threat.objective
        length = max(2 * self.steps, STEPS) if own else STEPS
        return self.broken_by(self.cached_pgd(objective=objective, steps=length), k)

    def restarts(self, count: int, objective: str) -> Tensor:
        """Broken by PGD-20 from `count` further starts, and not from the first."""
        seed = self.threat.seed + 1
        config = replace(self.threat, steps=STEPS, restarts=count, seed=seed, objective=objective)
        if config not in self._cache:
            self._cache[config] = self.run_pgd(config, self.mask & ~self.pgd(STEPS, objective))
        return self._cache[config] > 0

    def fgsm(self, multiple: float) -> Tensor:
        """Broken by x + ε·sign ∇CE (the other norms' steepest step), or wrong without it, at a multiple of ε."""
        eps = multiple * self.threat.eps
        return self.broken_by(self.cached_pgd(eps=eps, step_size=eps, steps=1, start="zero", objective="ce"), 1)

    def radius(self, multiple: float) -> Tensor:
        """Broken by PGD-20 at a multiple of ε, its step in proportion."""
        if multiple == 1:
            return self.pgd(STEPS, self.threat.objective)
        eps, size = multiple * self.threat.eps, multiple * self.threat.step_size
        return self.broken_by(self.cached_pgd(eps=eps, step_size=size, steps=STEPS), STEPS)

    def range(self, share: float) -> Tensor:
        """Broken by PGD-200 in the ball that holds every image, or in a share of that radius; steps of a tenth of it.

        The radius is 1 for L∞, √d for L2 and d for L1; half of it suffices to make every image grey, in each norm.
        """
        pixels = self.images.x[:1].numel()
        eps = share * {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[self.threat.norm]
        return self.broken_by(self.cached_pgd(eps=eps, step_size=eps / 10, steps=RANGE_STEPS), RANGE_STEPS)

    def strong_pgd(self, mask: Tensor) -> Tensor:
        """Of `mask`, broken by PGD-100 on the margin from five starts."""
        config = replace(self.threat, steps=100, restarts=5, objective="margin", seed=self.threat.seed + 2)
        return self.run_pgd(config, mask) > 0

    def targets(self) -> Tensor:
        """Broken by PGD-20 on the margin to one wrong class after another, the likeliest first."""
        threat = self.threat
        rel_step_size = threat.step_size / threat.eps
        attack = Targeted(threat.norm, threat.eps, STEPS, rel_step_size, CLASSES, start=threat.start)

        def search(x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
            return wrong(self.eval_model, attack(self.eval_model, x, y, rng), y)

        found = self.run("audit targets", search)
        self.broken = self.broken | found
        return found

    def noise(self) -> Tensor:
        """Broken by any of 100 uniform draws from the ball."""
        norm_ball, eps = ball(self.threat.norm), self.threat.eps

        def draw(x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
            hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for _ in range(DRAWS):
                hit |= wrong(self.eval_model, norm_ball.project(x, x + norm_ball.sample(x, eps, rng), eps), y)
            return hit

        return self.run("audit noise", draw)

    def run(self, stream: str, search: Callable[[Tensor, Tensor, ExampleDraws], Tensor]) -> Tensor:
        """(N,) booleans on the CPU: which examples `search(x, y, rng)` (B,) finds broken."""
        broken = torch.zeros(len(self.mask), dtype=torch.long, device=self.eval_model.device)
        with self.eval_model.ready():
            for rows in self.batches():
                x, y = self.eval_model.load(self.images, rows)
                rng = ExampleDraws(self.threat.seed, stream, index=self.images.indices(rows))
                broken[rows.to(self.eval_model.device)] = search(x, y, rng).long()
        return self.eval_model.reduce(broken).bool().cpu()

    def losses(self) -> Tensor:
        """(21,): the mean objective along PGD-20 from the clean image, nothing stopped, on the CPU in float64."""
        threat = self.threat
        sums = torch.zeros(STEPS + 1, dtype=torch.float64, device=self.eval_model.device)
        pgd = GradientAttack(threat.norm, threat.eps, STEPS, threat.step_size, start="zero", return_point="first")
        with self.eval_model.ready():
            for rows in self.batches():
                x, y = self.eval_model.load(self.images, rows)
                pgd(_RecordedObjective(self.eval_model, threat.objective, y, sums), x)
        return self.eval_model.reduce(sums).cpu() / int(self.mask.sum())

    def batches(self) -> Iterator[Tensor]:
        return self.eval_model.batches(self.mask.nonzero().flatten())


class _RecordedObjective(Objective):
    """An objective that adds its values at each step to `sums`."""

    def __init__(self, eval_model: EvalModel, objective: str, y: Tensor, sums: Tensor) -> None:
        super().__init__(eval_model.logits, LABEL_OBJECTIVES[objective], y)
        self.sums = sums

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        value, outputs = super().__call__(x_adv, rows, step)
        self.sums[step] += value.detach().double().sum()
        return value, outputs
