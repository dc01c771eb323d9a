"""Multi steepest descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from atbench.attacks import GradientAttack, Objective
from atbench.attacks.ascent.multi_norm import MultiSteepest
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import FixedSteps
from atbench.methods.multi_norm import check_norms, step_length
from atbench.methods.pgd_at import PgdAt
from atbench.models import attack_mode


class Msd(PgdAt):
    """MSD (Maini et al. 2020, ICML, arXiv 1909.04068): CE(f(x'), y), x' the worst image of a union of norm balls.

    Inner: one trajectory from x; at every step the steepest step of each norm, projected on that norm's ball and the
    box, and per example the candidate of largest cross-entropy; the best point of the way is kept
    (`atbench/attacks/ascent/multi_norm.py`). An L1 step is shared by a number of pixels drawn at each step. Outer:
    CE(f(x'), y).
    Cost: ((n + 2)·k + 3) forward passes a batch for n ≥ 2 norms, (2k + 4) for one.

    Paper and code: locuslab/robust_union (CIFAR10/cifar_funcs.py, MNIST/mnist_funcs.py) searches in train mode, as no
    line of its training says otherwise, so that every look moves the running statistics (`attack.bn`). On CIFAR-10 it
    trains at ε₂ = 0.3 and tests at 0.5. What its search does differently stands with `MultiSteepest`.
    Known weaknesses: the L1 search of few steps without restarts is weak, so that L1 accuracy needs APGD to be believed
    (`eval=auto eval.norm=l1`). With 10 restarts the README has 47.6 % L∞, 64.3 % L2, 53.4 % L1 and 46.1 % under all
    three on CIFAR-10; no AutoAttack figure is known to us.

    Args:
        radii: ε of each norm, in the order in which ties are settled: the later wins.
        rel_path_length: length of all steps of the search together, in units of the norm's ε.
        pixels: least and greatest number of pixels that share an L1 step; rounded, 1 at least.
        l1_step: `code`, which moves no pixel that is exactly 0 or 1, or `steepest`, which moves it inward.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        radii: Mapping[str, NotNegative],
        rel_path_length: Mapping[str, NotNegative],
        pixels: Sequence[NotNegative],
        l1_step: str = "code",
    ) -> None:
        super().__init__(model, attack)
        check_norms(attack, radii, rel_path_length=rel_path_length)
        lengths = {norm: step_length(eps, rel_path_length[norm], attack.steps) for norm, eps in radii.items()}
        self.union = MultiSteepest(radii, lengths, attack.steps, attack.start, pixels, l1_step)

    def perturb(self, batch: Batch) -> Batch:
        objective = Objective(self.model, self.attack_risk, batch.y)
        with attack_mode(self, self.attack.bn):
            return batch.with_adv(self.union(objective, batch.x, rng=self.rng()))

    def fixed_steps(self) -> dict[str, FixedSteps]:
        union = self.union
        return {
            f"method.rel_path_length.{norm}": FixedSteps(union.steps, union.step_sizes[norm], eps)
            for norm, eps in union.radii.items()
        }

    def forward_cost(self, steps: int) -> float:
        norms = len(self.union.radii)
        return 2 * steps + 4 if norms == 1 else (norms + 2) * steps + 3
