"""Friendly adversarial training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State
from atbench.attacks.ascent.loop import Stop
from atbench.config.ranges import AnyCount, Share
from atbench.data import Batch
from atbench.methods.base import Method
from atbench.methods.pgd_at import PgdAt


class Friendly(Method):
    """PGD that stops early, in front of a method with any outer loss: `class FatTrades(Friendly, Trades)`.

    At each iterate, the start included: where the prediction is wrong and the counter of the example is 0, the iterate
    is x'; where it is wrong and the counter is not 0, the counter falls by one and a step follows; where it is right,
    a step follows. Counters begin at τ and fall at any wrong prediction, consecutive or not. The iterate after k steps
    is taken as it is. Each step adds ω·N(0, 1) before the projection (`attack.noise`). τ = k is PGD.

    tau: τ at the beginning. milestones: shares of training after each of which τ is one more.
    """

    requires_hard_labels = True
    tau: int
    milestones: Sequence[float]

    @property
    def current_tau(self) -> int:
        """τ in this epoch."""
        share = self.clock.epoch / self.clock.epochs
        return self.tau + sum(share >= milestone - 1e-12 for milestone in self.milestones)

    def perturb(self, batch: Batch) -> Batch:
        stop = misclassified_more_than(self.current_tau, batch.y)
        return batch.with_adv(self.run_attack(self.objective(batch), batch.x, stop=stop))

    def objective(self, batch: Batch) -> Objective:
        """What the attack maximises."""
        return Objective(self.model, self.attack_risk, batch.y)

    def epoch_figures(self) -> dict[str, float]:
        return {"tau": self.current_tau}

    def forward_cost(self, steps: int) -> float | None:
        return None  # examples stop on the way


def misclassified_more_than(tau: int, y: Tensor) -> Stop:
    """The stop rule of FAT for labels y (B,): true at the first iterate that is wrong after τ others were."""
    counter = torch.full_like(y, tau)

    def stop(state: State) -> Tensor:
        wrong = state.outputs.argmax(dim=1) != y[state.rows]
        done: Tensor = wrong & (counter[state.rows] == 0)
        counter[state.rows] -= wrong.to(counter.dtype)
        return done

    return stop


class Fat(Friendly, PgdAt):
    """FAT (Zhang et al. 2020, ICML, arXiv 2002.11242, Alg. 1): CE(f(x'), y), x' the least adversarial image of the
    ball that is still misclassified with some confidence.

    Inner: PGD on cross-entropy from a uniform start in the box, stopped τ steps after the network is first wrong
    (`Friendly`); τ grows during training. Outer: CE(f(x'), y). Cost: at most (2k + 3) forward passes a batch.

    Paper and code: zjfheart/Friendly-Adversarial-Training (FAT.py, earlystop.py) returns examples in the order in which
    they stop, with their labels; here they stay in their rows, and finished ones leave the computation once a quarter
    of the batch is finished. It forwards the clean images once an attack without need. Its `--dynamictau False` is
    true, so that the command of its README for plain PGD-AT trains FAT; here that is
    `method.tau=10 method.milestones=[]`.
    Known weaknesses: weak training attacks leave more clean accuracy and less robustness: PGD-20 46.13 % with clean
    89.34 % at ε = 8/255 (README, WRN-32-10). The survey's 49.86 % is trained at 16/255 and attacked at 8/255.
    RobustBench's entry of this paper (AutoAttack 53.51 %) is `fat_trades`.

    Args:
        tau: τ at the beginning.
        milestones: shares of training after each of which τ is one more.
    """

    def __init__(
        self, model: torch.nn.Module, attack: GradientAttack, tau: AnyCount = 0, milestones: Sequence[Share] = ()
    ) -> None:
        super().__init__(model, attack)
        self.tau, self.milestones = tau, milestones
