"""MART."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.divergences import kl_divergence


class Mart(Method):
    """MART (Wang et al. 2020, ICLR): BCE(f(x'), y) + β · KL(f(x) ‖ f(x')) · (1 − p_y(x)).

    BCE(f(x'), y) = CE(f(x'), y) − log(1 − max_{k≠y} p_k(x')), the second term with `risk`'s place taken by the first.
    Inner: cross-entropy PGD from x + 0.001·N(0, 1) in eval mode. Nothing is detached: the gradient flows through the
    weight 1 − p_y(x) and through p(x) too. Cost: (2k + 6) forward passes a batch.

    Source: YisenWang/MART (mart.py), whose guards 1.0001 and 1.0000001 against log 0 are kept; the sums of logarithms
    are computed from log-softmax, so that the guard 1e-12 on the probabilities is not needed.
    Known weaknesses: PGD overestimates its robustness. Robust accuracy later measured by AutoAttack: 56.29 %; reported:
    65.04 % (RobustBench, WRN-28-10 with extra data); 47.51 %, below TRADES' 49.45 % (MAIR, ResNet-18). MAIR's run with
    AWP on WRN-34-10 collapsed to chance.

    Args:
        beta: weight of the KL term (the paper's λ).
    """

    requires_hard_labels = True
    #: The order of the update's two forwards: running statistics lean to the second.
    adversarial_first = False

    def __init__(self, model: torch.nn.Module, attack: GradientAttack, beta: NotNegative = 5.0) -> None:
        super().__init__(model, attack)
        self.beta = beta

    def loss(self, batch: Batch) -> Loss:
        if self.adversarial_first:
            adversarial, clean = self.model(batch.x_adv), self.model(batch.x)
        else:
            clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        boosted = (self.risk(adversarial, batch.y) + best_wrong(adversarial, batch.y)).mean()
        true = clean.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        kl = kl_divergence(clean, adversarial)
        weighted = (kl * (1.0000001 - true)).mean()
        terms = {"bce": boosted.detach(), "kl": weighted.detach()}
        return Loss(boosted + self.beta * weighted, terms, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return 2 * steps + 6


def best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """−log(1.0001 − max_{k≠y} p_k), (B,): how much the most likely wrong class believes in itself."""
    p = F.softmax(logits, dim=1)
    return -torch.log(1.0001 - p.scatter(1, y[:, None], 0.0).amax(dim=1))
