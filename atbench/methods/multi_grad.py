"""FGSM training along the signs on which the gradients at several random points agree."""

from __future__ import annotations

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Count
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt


class MultiGrad(PgdAt):
    """MultiGrad (Golgooni et al. 2021, arXiv 2103.15476): CE(f(x'), y), for L∞.

        s = Σ_i sign ∇CE(f(x + η_i), y),  x' = Π( x + α · sign(s · [|s| ≥ 2·agree − n]) ),  η_1 … η_n ~ U(−ε, ε), α = 2ε

    η_i is clipped to the box; x' starts from x itself, so that a pixel is moved by ε to its ball's edge, or not at all
    where fewer than `agree` of the n signs agree.
    Cost: (2n + 3) forward passes a batch, each start in a forward of its own, n + 1 of them in train mode.

    Source: rohban-lab/catastrophic_overfitting, train_cifar.py: multi_grad. Its `--multi-parallel`, all starts in one
    forward with the statistics of all, is left out.
    Known weakness: n gradients for one step. No AutoAttack figure is known.

    Args:
        starts: n.
        agree: of how many starts the signs must agree, more than half; None: of all.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, starts: Count = 3, agree: Count | None = None) -> None:
        super().__init__(model, attack)
        if attack.norm != "linf":
            raise ConfigError("attack.norm", attack.norm, "signs of gradients are steps in L-infinity", "use linf")
        if agree is not None and not starts < 2 * agree <= 2 * starts:
            raise ConfigError("method.agree", agree, f"is not more than half of {starts}", "use more, or null for all")
        self.starts, self.agree = starts, starts if agree is None else agree

    def perturb(self, batch: Batch) -> Batch:
        attack, x, rng = self.attack, batch.x, self.rng()
        signs = torch.zeros_like(x)
        for _ in range(self.starts):
            grad, _ = self.input_gradient(attack.begin(x, attack.eps, rng), batch.y)
            signs += grad.sign()
        agreed = torch.where(signs.abs() < 2 * self.agree - self.starts, 0, signs)
        return batch.with_adv(attack.step_along(x, x, agreed))

    def forward_cost(self, steps: int) -> float:
        return 2 * self.starts + 3
