"""FGSM training with aligned input gradients: a regularizer of second order against catastrophic overfitting."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.errors import refuse_unknown
from atbench.methods.base import Loss, Method
from atbench.methods.second_order import differentiable_gradient

EDGES = ("full", "half")


class GradAlign(Method):
    """GradAlign (Andriushchenko & Flammarion 2020, NeurIPS, arXiv 2007.02617): CE(f(x'), y) + λ·(1 − mean cos(g₁, g₂)).

    g₁ = ∇_x CE(f(x), y), a constant, is also the gradient of the step x' = Π(x + α·d(g₁)), FGSM from x itself; g₂ =
    ∇_x CE(f(x+η), y) with η ~ U(−ε, ε), x + η not clipped to the box, is what the parameters get a gradient through.
    An example with a zero gradient is left out of the mean. All three forwards are in train mode, x then x' then x + η.
    With λ = 0 there is no third one, and this is FGSM training.
    Cost: 12 forward passes a batch: 2 for the step, 3 for x', and at x + η a gradient that is differentiated again.

    Source: tml-epfl/understanding-fast-adv-training, train.py. There g₁ is taken through max(min(x, 1), 0), which
    halves it in pixels that are exactly 0 or 1 (`edge: half`), as digits have them; the README's own snippet takes the
    whole gradient (`edge: full`). Its random start (`--attack_init random`) is left out, and so is the warm-up of α
    on SVHN, without which it predicts the largest class (issue 2 of the repository).
    Known weakness: three times the cost of FGSM; λ grows with ε: exp(ln 0.02 + ln 10 · ε/(8/255)) on CIFAR-10.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 43.93 %; reported: 44.54 % (RobustBench).

    Args:
        weight: λ.
        edge: g₁ in black and white pixels, `full` or `half`.
    """

    takes_micro_batches = False
    second_order = True

    def __init__(self, model: nn.Module, attack: GradientAttack, weight: NotNegative = 0.2, edge: str = "full") -> None:
        super().__init__(model, attack)
        refuse_unknown("method.edge", edge, EDGES)
        self.weight, self.edge = weight, edge

    def perturb(self, batch: Batch) -> Batch:
        x = batch.x
        grad, _ = self.input_gradient(x, batch.y)
        x_adv = self.attack.step_along(x, x, grad)
        if self.edge == "half":
            grad = torch.where((x == 0) | (x == 1), grad / 2, grad)
        return batch.with_adv(x_adv, gradient=grad)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y).mean()
        if self.weight == 0:
            return Loss(risk, {}, logits)
        point = (batch.x + self.attack.ball.sample(batch.x, self.attack.eps, self.rng("eta"))).requires_grad_()
        grad, _ = differentiable_gradient(self.model, point, batch.y)
        misaligned = self.misalignment(batch.aux["gradient"].flatten(1), grad)
        return Loss(risk + self.weight * misaligned, {"ce": risk.detach(), "misaligned": misaligned.detach()}, logits)

    def misalignment(self, first: Tensor, second: Tensor) -> Tensor:
        """1 − the mean cosine of two gradients (B, D), over the examples for which neither is zero."""
        rows = (first.norm(dim=1) != 0) & (second.detach().norm(dim=1) != 0)
        count = self.gather(rows).sum().clamp_min(1) / self.clock.world  # over the joint batch
        first, second = first[rows], second[rows]
        cosine = (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1))
        return (1 - cosine).sum() / count

    def forward_cost(self, steps: int) -> float:
        return 12
