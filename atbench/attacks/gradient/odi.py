"""Output diversified initialisation (ODI): restarts from points whose outputs differ (Tashiro et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, fewest_classes, label_objective
from atbench.attacks.restarts import AttackStage, RobustTracker, always
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.runs.seeding import ExampleDraws


class OutputDirection(Objective):
    """wᵀ z(x') with w ~ U(−1, 1)^K of each example, drawn at the first call, when the number of classes is known."""

    def __init__(self, target: Target, rng: ExampleDraws) -> None:
        super().__init__(target.logits, lambda logits, w: (w * logits).sum(dim=1))
        self.rng = rng

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        logits = self.network(x_adv)
        if not self.args:
            self.args = (self.rng.uniform(logits.detach()),)
        w = self.args[0] if rows is None else self.args[0][rows]
        return self.value(logits, w), logits


class ODI(Attack):
    """PGD with output diversified initialisation: each restart takes `diverse_steps` steps up wᵀz, then PGD.

        x' ← Π( x' + rel_diverse_step·ε · d(∇ wᵀ z(x')) ),   w ~ U(−1, 1)^K anew for every restart and example
        x' ← Π( x' + rel_step_size·ε · d(∇ objective(x')) ), `steps` times

    from a uniform point of the ball; d is the ball's steepest direction. Restarts run on the examples
    that are still robust. Any misclassified iterate counts; the code judges the end of each restart only.

    Args:
        steps, rel_step_size: PGD after the initialisation; step size as a share of ε.
        diverse_steps, rel_diverse_step: N_ODI and η_ODI/ε.
        restarts: number of restarts, each with its own start and direction.
        objective: a name in LABEL_OBJECTIVES; `margin` (the code's default) or `ce`.

    Source: Tashiro, Song & Ermon 2020, NeurIPS, arXiv 2003.06878; ermongroup/ODS, odi_pgd_attack_cifar10.py.
    """

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount = 20,
        rel_step_size: NotNegative = 0.25,
        diverse_steps: AnyCount = 2,
        rel_diverse_step: NotNegative = 1.0,
        restarts: Count = 20,
        objective: str = "margin",
    ) -> None:
        super().__init__(norm, eps, steps)
        self.value, self.restarts, self.diverse_steps = label_objective(objective), restarts, diverse_steps
        self.least_classes = fewest_classes(self.value)
        self.step_size, self.diverse_step = rel_step_size * self.eps, rel_diverse_step * self.eps

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        tracker = RobustTracker(target, x, y)
        pgd = GradientAttack(self.norm, self.eps, self.steps, self.step_size, start="uniform")
        for restart, rows in tracker.restarts(self.restarts):
            draws = rng.at("restart", restart).take(rows)
            start = pgd.begin(x[rows], self.eps, draws)
            direction = always(OutputDirection(target, draws))
            stages = (
                AttackStage(direction, self.diverse_steps, self.diverse_step),
                AttackStage(lambda rows: Objective(target.logits, self.value, y[rows]), self.steps, self.step_size),
            )
            tracker.run_stages(pgd, stages, rows, start)
        return tracker.x_adv
