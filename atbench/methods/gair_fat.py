"""GAIRAT on friendly adversarial images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.attacks.ascent.loop import Stop
from atbench.config.ranges import AnyCount, Share
from atbench.methods.fat import Friendly, misclassified_more_than
from atbench.methods.gairat import Gairat


class GairFat(Friendly, Gairat):
    """GAIR-FAT (Zhang et al. 2021, ICLR, arXiv 2010.01736): mean_i w_i · CE(f(x'_i), y_i), GAIRAT's w and FAT's x'.

    Inner: PGD that leaves an example τ steps after it is first wrong (`Friendly`), so that κ_i counts right points up
    to there. Weights: those of `Gairat`. Cost: at most (2k + 3) forward passes a batch.

    Paper and code: zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training (GAIR_FAT.py, earlystop.py) drops
    rows that have stopped, and then compares the predictions of those left with the labels of other rows; it returns
    rows in the order in which they stop, and once weights count it pairs them with the labels of the order before. So
    it cannot be what made the published table. Here every example keeps its label, as the paper means it. The code
    forwards the clean images once an attack without need.
    Known weaknesses: as `Gairat`'s. Reported, WRN-32-10: clean 88.59 %, PGD-20 56.21 %; of the last checkpoint 50.64 %.

    Args:
        lam: λ; lower is steeper. Infinity is FAT.
        begin: share of training from which weights count.
        tau: τ at the beginning.
        milestones: shares of training after each of which τ is one more; one may stand there several times.
    """

    perturb = Gairat.perturb

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        lam: float = 0.0,
        begin: Share = 59 / 120,
        tau: AnyCount = 0,
        milestones: Sequence[Share] = (),
    ) -> None:
        Gairat.__init__(self, model, attack, lam, begin)
        self.tau, self.milestones = tau, milestones

    def stop_rule(self, y: Tensor) -> Stop:
        return misclassified_more_than(self.current_tau, y)
