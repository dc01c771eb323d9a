"""Helper-based adversarial training."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.stage import Stage
from atbench.methods.trades import Trades
from atbench.models import Frozen


class Hat(Trades):
    """HAT (Rade & Moosavi-Dezfooli 2022, ICLR): CE(f(x), y) + β · KL(f(x) ‖ f(x')) + γ · CE(f(x + h·(x' − x)), ŷ).

    ŷ = argmax g(x'), g a network of the same architecture trained on clean images first: adversarial training pushes
    the boundary further away than it has to along x' − x, and beyond x' there g has the say. Inner: TRADES' attack. The
    helper x + h·(x' − x) is not clipped to legal pixels; its label is what g says of x', not of the helper. The three
    batches go through the network one after the other. g is in eval mode always, and never trained, averaged or
    perturbed.
    Cost: (2k + 11) forward passes a batch, (2k + 7) with γ = 0, which is TRADES to the bit; before that g's run.

    Source: imrahulr/hat, core/utils/hat.py, with the h = 2 of its command line and of the paper, not the function's own
    3.5. Left out: its variant with β · CE(f(x'), y) in place of the KL. g is trained by the same recipe for as many
    epochs (the authors: 50 and 50).
    Known weaknesses: it improves clean accuracy rather than robustness. Robust accuracy by AutoAttack on CIFAR-10 at
    8/255: 49.08 %, clean 84.90 %, for ResNet-18 without more data; 60.97 %, clean 88.16 %, for WRN-28-10 with generated
    data (README).

    Args:
        beta: as in TRADES.
        gamma: γ, the weight of the helpers.
        reach: h, how far out a helper lies, in units of x' − x.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 2.5,
        gamma: NotNegative = 0.5,
        reach: NotNegative = 2.0,
    ) -> None:
        super().__init__(model, attack, beta)
        self.gamma, self.reach = gamma, reach
        self.helper = Frozen(deepcopy(model))

    def pretraining(self) -> dict[str, Stage]:
        # A seed of its own: the authors train it in a run apart.
        return {"helper": Stage({"_target_": "atbench.methods.standard.Standard"}, offset=1)} if self.gamma else {}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        if self.gamma:
            self.helper.load_state_dict(stages["helper"].state_dict())

    def perturb(self, batch: Batch) -> Batch:
        batch = super().perturb(batch)
        if not self.gamma:
            return batch
        with torch.no_grad():
            return batch.with_adv(said=self.helper(batch.x_adv).argmax(dim=1))

    def loss(self, batch: Batch) -> Loss:
        if not self.gamma:
            return super().loss(batch)
        beyond = batch.x + self.reach * (batch.x_adv - batch.x)
        clean, adversarial, outside = self.model(batch.x), self.model(batch.x_adv), self.model(beyond)
        natural = self.risk(clean, batch.y).mean()
        boundary = kl_divergence(clean, adversarial).mean()
        helped = F.cross_entropy(outside, batch.aux["said"])
        terms = {"ce": natural.detach(), "kl": boundary.detach(), "helper": helped.detach()}
        total = natural + self.beta * boundary + self.gamma * helped
        return Loss(total, terms, adversarial)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (11 if self.gamma else 7)
