"""FGSM training with a penalty on the distance of the loss from a straight line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch
from atbench.methods.base import Loss, Method


class Elle(Method):
    """ELLE (Abad Rocamora et al. 2024, ICLR, arXiv 2401.11618): CE(f(x'), y) + λ · (1/B) Σ E_i².

    E_i = ℓ(x_c) − (1 − a)·ℓ(x_a) − a·ℓ(x_b), ℓ the cross-entropy of the example, x_a, x_b ~ x + U(B(0, ε)),
    x_c = (1 − a)·x_a + a·x_b and a ~ U(0, 1): 0 where the loss is linear, without a second derivative. The three images
    go through the network in one forward; they are not clipped to the box. x' by FGSM, and all in train mode, x' first.

    With `adaptive` (ELLE-A) λ starts at 0; once the mean E² of a step exceeds the mean of all earlier ones by
    `sensitivity` standard deviations (of three at least), λ = `weight` from the next step on, and is multiplied by
    `decay` after every other step.
    Cost: 14 forward passes a batch.

    Paper and code: LIONS-EPFL/ELLE, core/utils/train.py, takes two optimizer steps on each gradient, before and after
    the schedule's, and forwards the clean batch once more for its log, which moves the running statistics; neither is
    done here. It does not clip x' to the box.
    Known weakness: λ is tuned by ε, 1000 to 10000. No AutoAttack figure of this recipe is known: the FastAT Benchmark's
    32.46 % is of λ = 1 and another attack.

    Args:
        weight: λ.
        adaptive: ELLE-A.
        sensitivity: standard deviations above the mean at which λ jumps.
        decay: factor on λ after a step without a jump.
    """

    weight_now: Tensor
    history: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 1000.0,
        adaptive: bool = False,
        sensitivity: NotNegative = 2.0,
        decay: Share = 0.99,
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.adaptive, self.sensitivity, self.decay = weight, adaptive, sensitivity, decay
        self.register_buffer("weight_now", torch.tensor(0.0 if adaptive else weight, dtype=torch.float64))
        #: Number, mean, and sum of squared distances from the mean (Welford) of the errors so far.
        self.register_buffer("history", torch.zeros(3, dtype=torch.float64))

    def loss(self, batch: Batch) -> Loss:
        rng, ball, eps = self.rng("line"), self.attack.ball, self.attack.eps
        a, b = (batch.x + ball.sample(batch.x, eps, rng) for _ in range(2))
        share = (rng.uniform(batch.x[:, 0, 0, 0]) + 1) / 2
        wide = share.view(-1, 1, 1, 1)
        logits = self.model(batch.x_adv)
        outputs = self.model(torch.cat([a, b, (1 - wide) * a + wide * b]))
        at_a, at_b, at_c = cross_entropy(outputs, torch.cat([batch.y] * 3)).chunk(3)
        risk = self.risk(logits, batch.y).mean()
        error = (at_c - (1 - share) * at_a - share * at_b).square().mean()
        batch.aux["error"] = error.detach()  # `after_update` adapts λ to it
        terms = {"ce": risk.detach(), "error": error.detach(), "weight": self.weight_now.to(risk.dtype)}
        return Loss(risk + self.weight_now.to(risk.dtype) * error, terms, logits)

    def after_update(self, batch: Batch) -> None:
        if self.adaptive:
            self.adapt(self.gather(batch.aux["error"][None]).double().mean())

    def adapt(self, error: Tensor) -> None:
        """λ after a step whose mean E² over the joint batch was `error`."""
        count, mean, squares = self.history.unbind()
        deviation = (squares / count.clamp_min(1)).sqrt()
        jump = (count > 2) & (error > mean + self.sensitivity * deviation)
        self.weight_now.copy_(torch.where(jump, self.weight, self.decay * self.weight_now))
        ahead = mean + (error - mean) / (count + 1)
        self.history.copy_(torch.stack([count + 1, ahead, squares + (error - mean) * (error - ahead)]))

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 12
