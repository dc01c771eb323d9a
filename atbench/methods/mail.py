"""Margin-aware instance reweighting of PGD-AT, TRADES and MART."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, margin
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.divergences import kl_divergence
from atbench.methods.mart import Mart, best_wrong
from atbench.methods.pgd_at import PgdAt
from atbench.methods.trades import Trades


class MarginWeights:
    """w_i = 3 · sigmoid(slope · (PM_i + bias)), PM_i = max_{k≠y} p_k(x'_i) − p_y(x'_i), in [−1, 1]; no gradient.

    p is the softmax of the logits of the loss, in train mode: PM is positive where the prediction is wrong. During the
    burn-in, before the share `begin` of training, w = 1.

    Args:
        slope, bias: of the sigmoid.
        begin: share of training from which weights count.
        normalise: in place of the factor 3, weights of mean 1 over the joint batch.
    """

    def __init__(self, slope: float, bias: float, begin: float, normalise: bool) -> None:
        self.slope, self.bias, self.begin, self.normalise = slope, bias, begin, normalise

    def __call__(self, method: Method, logits: Tensor, y: Tensor) -> Tensor:
        """w, (B,), from adversarial logits (B, K)."""
        pm = margin(logits.detach().softmax(dim=1), y)
        if method.clock.fraction < self.begin:
            return torch.ones_like(pm)
        weights = torch.sigmoid(self.slope * (pm + self.bias))
        return weights / method.gather(weights).mean() if self.normalise else 3 * weights


class MailAt(PgdAt):
    """MAIL-AT (Wang Q. et al. 2021, NeurIPS, arXiv 2106.07904): mean_i w_i · CE(f(x'_i), y_i), w by `MarginWeights`.

    Inner: cross-entropy PGD from x + 0.001·N(0, 1), not clipped, in eval mode. PGD-AT to the bit during the burn-in.
    Cost: (2k + 3) forward passes a batch.

    Paper and code: QizhouWang/MAIL (mail_loss.py, train.py). The paper normalises the weights over the batch (from
    memory; `normalise=true`), the code multiplies them by 3: slope 0 is 1.5 times the gradient of PGD-AT. Weights count
    from epoch 76 (from 0), one after the rate drops. No checkpoint is written: figures are of the last epoch.
    Known weaknesses: weights by margin are made to hold where PGD and CW look; the authors' AutoAttack is at ε = 0.031
    on the first 1000 test images. The paper's figures were not verified; not on RobustBench (from memory).

    Args:
        slope, bias, begin, normalise: as in `MarginWeights`.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        slope: NotNegative = 10.0,
        bias: float = -0.5,
        begin: Share = 76 / 120,
        normalise: bool = False,
    ) -> None:
        super().__init__(model, attack)
        self.weights = MarginWeights(slope, bias, begin, normalise)
        self.takes_micro_batches = not normalise

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        weights = self.weights(self, logits, batch.y)
        total = (weights * self.risk(logits, batch.y)).mean()
        return Loss(total, {"weight": weights.mean()}, logits)


class MailTrades(Trades):
    """MAIL-TRADES (Wang Q. et al. 2021, NeurIPS, arXiv 2106.07904): CE(f(x), y) + β · mean_i w_i · KL(f(x) ‖ f(x'))_i.

    w by `MarginWeights`, on the KL term alone. Inner, gradients and the order of the two forwards are those of TRADES,
    which it is to the bit during the burn-in. Cost: (2k + 7) forward passes a batch.

    Paper and code, known weaknesses: as in `MailAt`.

    Args:
        beta: weight of the KL term.
        slope, bias, begin, normalise: as in `MarginWeights`.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 5.0,
        slope: NotNegative = 2.0,
        bias: float = 0.0,
        begin: Share = 76 / 120,
        normalise: bool = False,
    ) -> None:
        super().__init__(model, attack, beta)
        self.weights = MarginWeights(slope, bias, begin, normalise)
        self.takes_micro_batches = not normalise

    def loss(self, batch: Batch) -> Loss:
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        weights = self.weights(self, adversarial, batch.y)
        natural = self.risk(clean, batch.y).mean()
        kl = kl_divergence(clean, adversarial)
        boundary = (weights * kl).mean()
        terms = {"ce": natural.detach(), "kl": boundary.detach(), "weight": weights.mean()}
        return Loss(natural + self.beta * boundary, terms, adversarial)


class MailMart(Mart):
    """MAIL-MART (Wang Q. et al. 2021, NeurIPS, arXiv 2106.07904): mean_i w_i · BCE(f(x'_i), y_i) + β · MART's KL term.

    w by `MarginWeights`, on the boosted cross-entropy alone. Everything else is MART's, which it is to the bit during
    the burn-in. Cost: (2k + 6) forward passes a batch.

    Paper and code, known weaknesses: as in `MailAt`. The repository gives no slope and bias for it; those of
    MAIL-TRADES are the paper's (from memory).

    Args:
        beta: weight of the KL term.
        slope, bias, begin, normalise: as in `MarginWeights`.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 5.0,
        slope: NotNegative = 2.0,
        bias: float = 0.0,
        begin: Share = 76 / 120,
        normalise: bool = False,
    ) -> None:
        super().__init__(model, attack, beta)
        self.weights = MarginWeights(slope, bias, begin, normalise)
        self.takes_micro_batches = not normalise

    def loss(self, batch: Batch) -> Loss:
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        weights = self.weights(self, adversarial, batch.y)
        boosted = (weights * (self.risk(adversarial, batch.y) + best_wrong(adversarial, batch.y))).mean()
        true = clean.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        kl = kl_divergence(clean, adversarial)
        doubtful = (kl * (1.0000001 - true)).mean()
        terms = {"bce": boosted.detach(), "kl": doubtful.detach(), "weight": weights.mean()}
        return Loss(boosted + self.beta * doubtful, terms, adversarial)
