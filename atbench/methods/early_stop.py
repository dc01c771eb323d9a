"""PGD-AT with early stopping."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.config.ranges import SomeShare
from atbench.methods.base import Decision, Report, Stop
from atbench.methods.pgd_at import PgdAt


class EarlyStop(PgdAt):
    """PGD-AT that ends when it overfits (Rice et al. 2020, ICML, arXiv 2002.11569).

    After the first decay of the learning rate accuracy under attack goes on rising on the training images and falls on
    others; the best epoch by held-out robust accuracy is worth as much as the algorithms that came after PGD-AT. Every
    run here selects that epoch and is evaluated at the best and at the last: what this method adds are the settings of
    the published runs, and, with `patience`, an end. Inner and outer are PGD-AT's, the attack in train mode.
    Cost: (2k + 4) forward passes a batch, (2k + 3) without the clean pass.

    Paper and code: locuslab/robust_overfitting (train_cifar.py) forwards the clean batch in train mode after every
    update, for its log: running statistics of BatchNorm see clean images too, as they do here (`clean_pass`). Left out:
    a further forward of the perturbed images, with which the code chooses among restarts, of which it makes one; and
    the checkpoint that it chooses on the test set (its model_best; its model_val is ours). The code trains to the end;
    `patience` is ours.
    Known weakness: the best epoch by one attack flatters that attack. Robust accuracy later measured by AutoAttack:
    53.42 %; reported: 58 % (RobustBench, WRN-34-20).

    Args:
        clean_pass: a clean forward after each update, for the statistics of BatchNorm alone.
        patience: share of training without a new best held-out robust accuracy after which training ends, rounded up to
            whole epochs; None trains to the end.
    """

    best: Tensor
    best_epoch: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        clean_pass: bool = True,
        patience: SomeShare | None = None,
    ) -> None:
        super().__init__(model, attack, clean_pass)
        self.patience = patience
        self.register_buffer("best", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("best_epoch", torch.tensor(0))

    def on_epoch(self, report: Report) -> Decision | None:
        epoch, measured = int(report.row["epoch"]), report.row.get("val")
        if self.patience is None or measured is None:
            return None
        if measured["pgd"] > float(self.best):
            self.best.fill_(measured["pgd"])
            self.best_epoch.fill_(epoch)
        # The hair's breadth keeps 10/300 of 300 at 10.
        patience = math.ceil(self.patience * self.clock.epochs - 1e-9)
        best = int(self.best_epoch)
        if epoch - best < patience:
            return None
        return Stop(f"held-out robust accuracy has not risen since epoch {best}")
