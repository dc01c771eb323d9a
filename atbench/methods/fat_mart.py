"""Friendly adversarial training with the loss of MART."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atbench.attacks import GradientAttack
from atbench.config.ranges import AnyCount, NotNegative, Share
from atbench.methods.fat import Friendly
from atbench.methods.mart import Mart


class FatMart(Friendly, Mart):
    """FAT for MART (Zhang et al. 2020, ICML, arXiv 2002.11242): BCE(f(x'), y) + β · KL(f(x) ‖ f(x')) · (1 − p_y(x)),
    x' stopped early.

    Inner: PGD on cross-entropy from x + 0.001·N(0, 1), clipped to the box, stopped τ steps after the network is first
    wrong (`fat.Friendly`). Outer: MART's, adversarial images forwarded first. Cost: at most (2k + 6) forward passes a
    batch.

    Source: zjfheart/Friendly-Adversarial-Training (FAT_for_MART.py, earlystop.py), in which ω is 0; its README has no
    figures of it. Known weakness: PGD overestimates MART's robustness (see there).

    Args:
        beta: weight of the KL term.
        tau: τ at the beginning.
        milestones: shares of training after each of which τ is one more.
    """

    adversarial_first = True

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
