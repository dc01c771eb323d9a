"""TRADES."""

from __future__ import annotations

from dataclasses import replace

import torch

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.divergences import kl_divergence
from atbench.models import attack_mode


class Trades(Method):
    """TRADES (Zhang et al. 2019, ICML, arXiv 1901.08573, eq. 5): CE(f(x), y) + β · max_δ KL(f(x) ‖ f(x+δ)).

    Inner: maximise KL(p(x) ‖ p(x')) from x + 0.001·N(0, 1) — at x itself its gradient is exactly zero — in eval mode;
    p(x) is computed once an attack. Outer: mean cross-entropy on the clean batch plus β times the KL summed over
    classes and averaged over the batch, with gradient through both of its arguments; clean and adversarial images in
    two forwards.
    Cost: (2k + 7) forward passes a batch.

    Paper and code: yaodongyu/TRADES (trades.py) forwards the clean batch twice in train mode, so its running statistics
    see it twice; here once. The paper's 100 epochs are 76 in the code, one epoch after the decay (a built-in early
    stop).
    Robust accuracy later measured by AutoAttack, ε = 0.031: 53.08 %; reported: 56.43 % (RobustBench, WRN-34-10).

    Args:
        beta: β = 1/λ, the weight of the robustness term.
    """

    #: The order of the update's two forwards: running statistics lean to the second.
    adversarial_first = False

    def __init__(self, model: torch.nn.Module, attack: GradientAttack, beta: NotNegative = 6.0) -> None:
        super().__init__(model, attack)
        self.beta = beta

    def perturb(self, batch: Batch) -> Batch:
        with attack_mode(self, self.attack.bn):
            with torch.no_grad():
                p = self.model(batch.x).softmax(dim=1)
            x_adv = self.attack(Objective(self.model, kl_from, p), batch.x, rng=self.rng())
        return replace(batch, x_adv=x_adv)

    def loss(self, batch: Batch) -> Loss:
        if self.adversarial_first:
            adversarial, clean = self.model(batch.x_adv), self.model(batch.x)
        else:
            clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        natural = self.risk(clean, batch.y).mean()
        boundary = kl_divergence(clean, adversarial).mean()
        terms = {"ce": natural.detach(), "kl": boundary.detach()}
        return Loss(natural + self.beta * boundary, terms, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return 2 * steps + 7
