"""Friendly adversarial training with the loss of TRADES."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import AnyCount, NotNegative, Share
from atbench.data import Batch
from atbench.methods.fat import Friendly
from atbench.methods.trades import Trades


class FatTrades(Friendly, Trades):
    """FAT for TRADES (Zhang et al. 2020, ICML, arXiv 2002.11242): CE(f(x), y) + β · KL(f(x) ‖ f(x')), x' stopped early.

    Inner: maximise KL(p(x) ‖ p(x')) from x + 0.001·N(0, 1), clipped to the box, and stop τ steps after the network is
    first wrong (`fat.Friendly`). Outer: TRADES'. Cost: at most (2k + 7) forward passes a batch.

    Source: zjfheart/Friendly-Adversarial-Training (FAT_for_TRADES.py, earlystop.py), in which ω is 0.
    Known weakness: less robust than its PGD figures, which were measured without random start (README, WRN-34-10, β =
    6, trained at 16/255: clean 84.39 %, PGD-20 57.12 %). Robust accuracy later measured by AutoAttack, ε = 8/255:
    53.51 % (RobustBench).

    Args:
        beta: β, the weight of the robustness term.
        tau: τ at the beginning.
        milestones: shares of training after each of which τ is one more.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 6.0,
        tau: AnyCount = 0,
        milestones: Sequence[Share] = (),
    ) -> None:
        super().__init__(model, attack, beta)
        self.tau, self.milestones = tau, milestones

    def objective(self, batch: Batch) -> Objective:
        return Objective(self.model, kl_from, self.probabilities(batch.x))
