"""FGSM on a mixture of an image's remembered perturbation and the next one, by the network's confidence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import per_example
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.soft_labels import smooth_label
from atbench.runs.seeding import Draws, generator


class FgsmPco(Method):
    """FGSM-PCO (Wang et al. 2024, ECCV, arXiv 2407.12443): CE(f(x̃), y~) + λ · |MSE(z', z₀) − MSE(z', z̃)|.

    Every train image i keeps a start δ_i. With z₀ = f(x + δ_i), p_y its softmax at the label, d the steepest direction
    (sign for L∞) and Π the projection on ball and pixels
    δ' = Π(x + δ_i + ε·d(∇CE(z₀, y~))) − x,   c = 1 − p_y,   x̃ = c·(x + δ_i) + (1 − c)·(x + β·δ'),   δ_i ← δ',
    z' = f(x + δ'), z̃ = f(x̃). An image of which the network is sure is seen β = 1.5 times as far away: x̃ may leave the
    ball and the box, and is not clipped. y~ puts `smoothing_target` on y and shares the rest among the other classes,
    in the search too. Both MSE are means over the joint batch and classes; gradients flow through all three logits, and
    through c into z₀. Passes are in train mode, in the order x + δ_i, x̃, x + δ'. δ_i = ε·d(N(0, I)) at the start of
    training, and is never drawn again.
    Cost: 10 forward passes a batch, and one float image for each train image in memory and checkpoint.

    Source: HandingWangXDGroup/FGSM-PCO, FGSM-PCO.py, and FastAT Benchmark's rewrite of it. x + δ_i is not clipped to
    the pixels of the next epoch's crop, and not moved with crop and flip.
    Known weaknesses: good clean accuracy, but far behind others beyond CIFAR-10 (AutoAttack 19.97 % on CIFAR-100,
    11.24 % on Tiny-ImageNet, FastAT Benchmark). The authors' published file is the last epoch's, which overwrites the
    best on the test set.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 48.52 % of 84.69 % (FastAT Benchmark, ResNet-18,
    under its own recipe).

    Args:
        consistency: λ.
        beta: β, the length of δ' in x̃.
        smoothing_target: what y~ puts on the true class.
    """

    takes_micro_batches = False
    requires_hard_labels = True
    delta: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        consistency: NotNegative = 10.0,
        beta: NotNegative = 1.5,
        smoothing_target: Share = 0.6,
    ) -> None:
        super().__init__(model, attack)
        self.consistency, self.beta = consistency, beta
        self.smoothing_target = smoothing_target

    def setup(self, data: TrainData) -> None:
        table = torch.zeros((len(data.train), *data.source.shape), dtype=data.dtype, device=data.device)
        rng = Draws(generator(data.device, data.seed, "fgsm-pco"))  # the same table on every process
        self.register_buffer("delta", self.attack.eps * self.attack.ball.steepest(rng.normal(table)))

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its pass with the update

    def loss(self, batch: Batch) -> Loss:
        ball, eps, x = self.attack.ball, self.attack.eps, batch.x
        start = (x + self.delta[batch.index]).requires_grad_()
        before = self.model(start)
        target = smooth_label(batch.y, self.smoothing_target, before)
        climbed = self.attack_risk(before, target).sum()
        grad = torch.autograd.grad(climbed, start, retain_graph=True)[0]
        start = start.detach()
        x_fgsm = ball.project(x, start + eps * ball.steepest(grad), eps)
        batch.aux["delta"] = x_fgsm - x  # `after_update` remembers it
        c = per_example(1 - before.softmax(dim=1).gather(1, batch.y[:, None]), x)
        mixed = self.model(c * start + (1 - c) * (x + self.beta * batch.aux["delta"]))
        after = self.model(x_fgsm)
        risk, drift = self.risk(mixed, target).mean(), self._absolute((after - before) ** 2 - (after - mixed) ** 2)
        terms = {"ce": risk.detach(), "drift": drift.detach()}
        return Loss(risk + self.consistency * drift, terms, mixed)

    def _absolute(self, difference: Tensor) -> Tensor:
        """This process's part of the absolute value of the joint batch's mean."""
        return self.gather(difference.detach()).mean().sign() * difference.mean()

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # one step of ε

    def single_step(self) -> bool:
        return True

    def after_update(self, batch: Batch) -> None:
        self.delta[self.gather(batch.index)] = self.gather(batch.aux["delta"])

    def forward_cost(self, steps: int) -> float:
        return 10
