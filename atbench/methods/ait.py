"""Adversarial interpolation training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.methods.soft_labels import smooth_label
from atbench.methods.tla import flat
from atbench.models import Network, attack_mode


class Ait(Method):
    """Adversarial interpolation (Zhang & Xu 2020, OpenReview Syejj0NYvr): CE(f(x̃), (1 − ε_y)·y + ε_y·(1 − ȳ)/(K − 1)).

    (x̄, ȳ) is the partner of (x, y): the joint batch in reverse order. The image goes towards its partner, the label
    away from the partner's. x̃: descend 1 − cos(h(x̃), h(x̄)), h the input of the head, from x + U(−ε, ε), which is not
    clipped to the box, in one step of length ε; eval mode, h(x̄) a constant, no labels. The label has ε_y/(K − 1) on
    each class but ȳ, beside the 1 − ε_y of y. The middle image of an odd batch is its own partner.
    Cost: (2k + 4) forward passes a batch, 6 for the one step.

    Source: Adv-Interp/adv_interp (adv_interp.py, train_adv_interp.py); the paper was not available to us.
    Known weaknesses: the smooth label flattens the loss around x, and PGD on cross-entropy sees little: the largest
    gap of the survey's methods. CIFAR-10, 8/255, the authors' network: PGD-20 74.4 %, CW-20 69.5 % (measured by
    Line290/FeatureAttack), AutoAttack 36.45 % (RobustBench; clean 90.25 %). Judge it by AutoAttack.

    Args:
        eps_y: ε_y, from 0 (the label itself) to 1.
    """

    takes_micro_batches = False

    def __init__(self, model: nn.Module, attack: GradientAttack, eps_y: Share = 0.5) -> None:
        super().__init__(model, attack)
        if not isinstance(model, Network):
            why = "ait compares what one network knows before its head"
            raise ConfigError("model", type(model).__name__, why, "use a model with stages, and model.members=1")
        self.eps_y = eps_y

    @property
    def network(self) -> Network:
        """The model, known to be a network with stages."""
        assert isinstance(self.model, Network)
        return self.model

    def perturb(self, batch: Batch) -> Batch:
        own = slice(self.clock.rank * len(batch), (self.clock.rank + 1) * len(batch))
        x_partner, y_partner = (self.gather(rows).flip(0)[own] for rows in (batch.x, batch.y))
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            features = flat(self.network.features(x_partner))
        x_adv = self.run_attack(Objective(self.network.features, closeness, features), batch.x)
        return batch.with_adv(x_adv, y_partner=y_partner)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        own, away = smooth_label(batch.y, 1.0, logits), smooth_label(batch.aux["y_partner"], 0.0, logits)
        return Loss(self.risk(logits, (1 - self.eps_y) * own + self.eps_y * away).mean(), {}, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 4


def closeness(features: Tensor, others: Tensor) -> Tensor:
    """(B,): cos(h, h') − 1 of each pair of rows, at most 0."""
    cosine = (F.normalize(flat(features), dim=1, eps=1e-6) * F.normalize(others, dim=1, eps=1e-6)).sum(dim=1)
    return clip(cosine - 1, -math.inf, 0.0)
