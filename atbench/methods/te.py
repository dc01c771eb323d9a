"""Temporal ensembling of clean predictions, on top of PGD-AT and of TRADES."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy, kl_from
from atbench.config.ranges import BelowOne, NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.methods.divergences import kl_divergence
from atbench.methods.pgd_at import PgdAt
from atbench.methods.trades import Trades


class Ensembling(nn.Module):
    """A moving average S_i of each train image's clean prediction, and the weight w of agreeing with it.

    From the share `start` of training on, at a visit of example i with clean prediction p: S_i ← μ·S_i + (1 − μ)·p, and
    the target is t_i = S_i / ΣS_i. S begins at zero, which the division makes up for. w is 0 before `start`, and then
    weight · exp(−5·(1 − u)²), u rising from 0 to 1 until the share `full`.

    Args:
        weight: w after the rise.
        momentum: μ.
        start, full: shares of training at which w begins, and at which it has risen.
    """

    table: Tensor

    def __init__(self, weight: float, momentum: float, start: float, full: float) -> None:
        super().__init__()
        if full < start:
            raise ConfigError("method.full", full, f"w would have risen before it begins at {start:g}", "use more")
        self.weight, self.momentum, self.start, self.full = weight, momentum, start, full

    def setup(self, data: TrainData) -> None:
        """Allocate S for every train image and class."""
        shape = (len(data.train), len(data.source.classes))
        self.register_buffer("table", torch.zeros(shape, dtype=data.dtype, device=data.device))

    def strength(self, fraction: float) -> float:
        """w at a share of training."""
        if fraction < self.start:
            return 0.0
        rest = max(0.0, (self.full - fraction) / (self.full - self.start)) if self.full > self.start else 0.0
        return self.weight * math.exp(-5 * rest**2)

    def visit(self, index: Tensor, p: Tensor) -> dict[str, Tensor]:
        """S and t of the examples `index` after this visit, each (B, K), for a batch's `aux`. Writes nothing."""
        average = self.momentum * self.table[index] + (1 - self.momentum) * p
        return {"average": average, "target": average / average.sum(dim=1, keepdim=True)}

    def remember(self, method: Method, batch: Batch) -> None:
        """Write S of the joint batch, if it was visited."""
        if "average" in batch.aux:
            self.table[method.gather(batch.index)] = method.gather(batch.aux["average"])


def disagreement(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over classes of (softmax(z) − t)², (B,)."""
    return (logits.softmax(dim=1) - target).square().mean(dim=1)


class PgdAtTe(PgdAt):
    """PGD-AT+TE (Dong et al. 2022, ICLR, arXiv 2106.01606): CE(f(x'), y) + w · mean_{B×K} (p(x') − t)².

    t_i is a moving average over epochs of p(x_i), the prediction for the image without attack (`Ensembling`): a label
    that the network can only learn by heart is not what it predicted. Inner: the same loss of each example, from a
    uniform start that is not clipped to the box; p(x) is taken in the attack's mode on the augmented image. Outer: no
    gradient flows into t. Before the share `start` of training it is PGD-AT to the bit, and nothing is remembered.
    Cost: (2k + 4) forward passes a batch, (2k + 3) before `start`, and K numbers for each train image.

    Source: dongyp13/memorization-AT (loss.py, train_te.py). There w has one value an epoch, here it rises from step to
    step through the same values. The mean is over classes too: at K = 10, w = 300 is 30 times the squared distance.
    Known weaknesses: it cures robust overfitting, so that the last checkpoint gains; the best one about a point (from
    memory). Not on RobustBench; an AutoAttack figure was not found.

    Args:
        weight, momentum, start, full: as in `Ensembling`.
    """

    requires_hard_labels = True  # a row of S is what was said of one image, and a mixed one is two

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 300.0,
        momentum: BelowOne = 0.9,
        start: Share = 89 / 200,
        full: Share = 149 / 200,
    ) -> None:
        super().__init__(model, attack)
        self.ensembling = Ensembling(weight, momentum, start, full)

    def setup(self, data: TrainData) -> None:
        self.ensembling.setup(data)

    def perturb(self, batch: Batch) -> Batch:
        w = self.ensembling.strength(self.clock.fraction)
        if not w:
            return super().perturb(batch)

        def value(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(logits, y) + w * disagreement(logits, target)

        visit = self.ensembling.visit(batch.index, self.probabilities(batch.x))
        objective = Objective(self.model, value, (batch.y, visit["target"]))
        return batch.with_adv(self.run_attack(objective, batch.x), **visit)

    def loss(self, batch: Batch) -> Loss:
        w = self.ensembling.strength(self.clock.fraction)
        if not w:
            return super().loss(batch)
        logits = self.model(batch.x_adv)
        risk, drift = self.risk(logits, batch.y).mean(), disagreement(logits, batch.aux["target"]).mean()
        terms = {"ce": risk.detach(), "mse": drift.detach()}
        return Loss(risk + w * drift, terms, logits)

    def after_update(self, batch: Batch) -> None:
        self.ensembling.remember(self, batch)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (4 if self.ensembling.strength(self.clock.fraction) else 3)


class TradesTe(Trades):
    """TRADES+TE (Dong et al. 2022): CE(f(x), y) + β · KL(f(x) ‖ f(x')) + w · mean_{B×K} (p(x) − t)².

    t and w are those of `Ensembling`, as in PGD-AT+TE. Inner: β · KL(p(x) ‖ p(x')) + w · mean_K (p(x') − t)² of each
    example, from x + 0.001·N(0, 1). The outer term looks at the clean prediction, the inner one at the attacked one.
    Before the share `start` of training it is TRADES to the bit.
    Cost: (2k + 7) forward passes a batch, as TRADES: its attack has p(x) anyway.

    Source, and what differs from it: as PGD-AT+TE.

    Args:
        beta: as in TRADES.
        weight, momentum, start, full: as in `Ensembling`.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 6.0,
        weight: NotNegative = 300.0,
        momentum: BelowOne = 0.9,
        start: Share = 89 / 200,
        full: Share = 149 / 200,
    ) -> None:
        super().__init__(model, attack, beta)
        self.ensembling = Ensembling(weight, momentum, start, full)

    def setup(self, data: TrainData) -> None:
        self.ensembling.setup(data)

    def perturb(self, batch: Batch) -> Batch:
        w = self.ensembling.strength(self.clock.fraction)
        if not w:
            return super().perturb(batch)

        def value(logits: Tensor, p: Tensor, target: Tensor) -> Tensor:
            return self.beta * kl_from(logits, p) + w * disagreement(logits, target)

        p = self.probabilities(batch.x)
        visit = self.ensembling.visit(batch.index, p)
        objective = Objective(self.model, value, (p, visit["target"]))
        return batch.with_adv(self.run_attack(objective, batch.x), **visit)

    def loss(self, batch: Batch) -> Loss:
        w = self.ensembling.strength(self.clock.fraction)
        if not w:
            return super().loss(batch)
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        natural, drift = self.risk(clean, batch.y).mean(), disagreement(clean, batch.aux["target"]).mean()
        boundary = kl_divergence(clean, adversarial).mean()
        terms = {"ce": natural, "kl": boundary, "mse": drift}
        terms = {name: term.detach() for name, term in terms.items()}
        total = natural + self.beta * boundary + w * drift
        return Loss(total, terms, adversarial)

    def after_update(self, batch: Batch) -> None:
        self.ensembling.remember(self, batch)
