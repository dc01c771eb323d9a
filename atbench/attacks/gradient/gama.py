"""GAMA-PGD: the margin of probabilities with a decaying guidance term (Sriramanan et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, margin
from atbench.attacks.restarts import AttackStage, RobustTracker
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.errors import refuse_unknown
from atbench.runs.seeding import ExampleDraws

REFERENCES = ("start", "clean")
SCHEDULE = (0.60, 0.85)  # shares of the steps after which the step size is divided by `drop`: 60 and 85 of 100
DECAY = 0.25  # share of the steps over which the guide's weight falls to 0: 25 of 100


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} p_k − p_y with p = softmax(z), (B,)."""
    return margin(logits.softmax(dim=1), y)


class Guided(Objective):
    """max_{k≠y} p_k − p_y + λ_t ‖p(x'_t) − p_ref‖², λ_t = λ_0 · max(0, 1 − t / `over`) at step t.

    Without a `reference` p_ref is that of the first point evaluated.
    """

    def __init__(self, target: Target, y: Tensor, weight: float, over: int, reference: Tensor | None) -> None:
        super().__init__(target.logits, probability_margin, y)
        self.weight, self.over, self.reference = weight, over, reference

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        value, logits = super().__call__(x_adv, rows, step)
        if self.reference is None:
            self.reference = logits.detach().softmax(dim=1)
        weight = self.weight * max(0.0, 1 - step / self.over)
        if weight == 0:
            return value, logits
        reference = self.reference if rows is None else self.reference[rows]
        return value + weight * (logits.softmax(dim=1) - reference).square().sum(dim=1), logits


class GAMA(Attack):
    """GAMA-PGD: large steps on the margin of probabilities plus a guide that decays to nothing.

        x' ← Π( x' + α_t · d(∇[ max_{k≠y} p_k − p_y + λ_t ‖p(x') − p_ref‖² ]) )

    α_t = rel_step_size·ε, divided by `drop` after 60 % and again after 85 % of the steps; λ_t falls linearly from
    `guide` to 0 over the first 25 %. L∞ starts at a corner of the ball (x ± ε), the other norms, which the paper does
    not cover, at a uniform point. Restarts run on the examples that are still robust; any misclassified iterate counts.

    Args:
        steps, rel_step_size, drop: as above; step size as a share of ε.
        guide: λ_0.
        reference: p_ref is that of the clean image (`clean`, the paper's) or of the starting point (`start`, the
            code's).
        restarts: number of restarts, each from its own start.

    Source: Sriramanan et al. 2020, NeurIPS, arXiv 2011.14969; val-iisc/GAMA-GAT, GAMA/GAMA_PGD.py.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 100,
        rel_step_size: NotNegative = 2.0,
        drop: float = 10.0,
        guide: NotNegative = 50.0,
        reference: str = "start",
        restarts: Count = 5,
    ) -> None:
        super().__init__(norm, eps, steps)
        refuse_unknown("attack.reference", reference, REFERENCES, "reference")
        self.drop, self.guide, self.reference, self.restarts = drop, guide, reference, restarts
        self.step_size = rel_step_size * self.eps

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        tracker = RobustTracker(target, x, y)
        law = "corner" if self.norm == "linf" else "uniform"
        pgd = GradientAttack(self.norm, self.eps, self.steps, self.step_size, start=law)
        clean = None
        if self.reference == "clean":
            with torch.no_grad():
                clean = target.logits(x).softmax(dim=1)
        for restart, rows in tracker.restarts(self.restarts):
            start = pgd.begin(x[rows], self.eps, rng.at("restart", restart).take(rows))
            tracker.run_stages(pgd, self._stages(target, y, clean), rows, start)
        return tracker.x_adv

    def _stages(self, target: Target, y: Tensor, clean: Tensor | None) -> list[AttackStage]:
        over = max(1, round(DECAY * self.steps))

        def guided(rows: Tensor) -> Objective:
            return Guided(target, y[rows], self.guide, over, None if clean is None else clean[rows])

        def plain(rows: Tensor) -> Objective:
            return Objective(target.logits, probability_margin, y[rows])

        cuts = [0, *(round(share * self.steps) for share in SCHEDULE), self.steps]
        objectives: list[Callable[[Tensor], Objective]] = [guided, plain, plain]
        return [
            AttackStage(objective, end - begin, self.step_size / self.drop**number)
            for number, (objective, begin, end) in enumerate(zip(objectives, cuts, cuts[1:], strict=False))
        ]
