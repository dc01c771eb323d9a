"""FGSM with a momentum-based prior of every example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.soft_labels import smooth_label
from atbench.runs.seeding import Draws, generator


class FgsmMep(Method):
    """FGSM-MEP (Jia et al. 2022, ECCV, arXiv 2207.08859): CE(f(x'), y~) + λ · MSE(f(x'), f(x + δ_i)).

    Every train image i keeps a start δ_i and a momentum m_i. With g = ∇CE(f(x + δ_i), y~), d the steepest direction
    (sign for L∞) and Π the projection on ball and pixels, one step trains and another one remembers:
    x' = Π(x + δ_i + ε·d(g)),   m_i ← μ·m_i + g / ‖g‖₁,   x + δ_i ← Π(x + δ_i + ε·d(m_i)),
    with ‖g‖₁ over the joint batch. y~ puts `smoothing_target` on y and shares the rest among the other classes, in the
    search too.
    The MSE is a mean over batch and classes, its gradient flows through both; the pass at x + δ_i is shared by search
    and update, in train mode. At the start of training and again after each share `reset` of it δ_i = ε·d(N(0, I)) and
    m_i = 0.
    Cost: 7 forward passes a batch, 5 with λ = 0, and two float images for each train image in memory and checkpoint.

    Source: jiaxiaojunQAQ/FGSM-PGI, FGSM_MEP.py (the paper's BP and EP, starts from the last batch and from the last
    epoch alone, are not in it). δ_i is clipped to the pixels of the crop it was found on; it is not moved with the next
    epoch's crop and flip, and x + δ_i is not clipped again there.
    Known weaknesses: the authors select on the test set, which flatters their figures; like all single-step methods it
    can overfit catastrophically at larger ε.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 49.9 % of 55.8 % (FastAT Benchmark, ResNet-18,
    under its own recipe).

    Args:
        consistency: λ.
        momentum: μ.
        smoothing_target: what y~ puts on the true class.
        reset: share of training after which all starts are drawn anew, at the nearest end of an epoch.
    """

    requires_hard_labels = True
    delta: Tensor
    memory: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        consistency: NotNegative = 10.0,
        momentum: NotNegative = 0.3,
        smoothing_target: Share = 0.6,
        reset: Share = 40 / 110,
    ) -> None:
        super().__init__(model, attack)
        self.consistency, self.momentum = consistency, momentum
        self.smoothing_target, self.reset = smoothing_target, reset

    def setup(self, data: TrainData) -> None:
        shape = (len(data.train), *data.source.shape)
        self.register_buffer("delta", torch.zeros(shape, dtype=data.dtype, device=data.device))
        self.register_buffer("memory", torch.zeros_like(self.delta))
        self._draw(data.seed, 0)

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its pass with the update

    def loss(self, batch: Batch) -> Loss:
        ball, eps, delta = self.attack.ball, self.attack.eps, self.delta[batch.index]
        start = (batch.x + delta).requires_grad_()
        before = self.model(start)
        target = smooth_label(batch.y, self.smoothing_target, before)
        climbed = self.attack_risk(before, target).sum()
        grad = torch.autograd.grad(climbed, start, retain_graph=self.consistency > 0)[0]
        batch.aux["gradient"] = grad  # `after_update` remembers it
        after = self.model(ball.project(batch.x, start.detach() + eps * ball.steepest(grad), eps))
        risk = self.risk(after, target).mean()
        drift = F.mse_loss(after, before if self.consistency else before.detach())
        terms = {"ce": risk.detach(), "mse": drift.detach()}
        return Loss(risk + self.consistency * drift, terms, after)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # one step of ε

    def single_step(self) -> bool:
        return True

    def after_update(self, batch: Batch) -> None:
        ball, eps, grad = self.attack.ball, self.attack.eps, batch.aux["gradient"]
        length = self.gather(grad.abs().flatten(1).sum(dim=1)).sum()
        memory = self.momentum * self.memory[batch.index] + grad / length.clamp_min(torch.finfo(grad.dtype).tiny)
        ahead = batch.x + self.delta[batch.index] + eps * ball.steepest(memory)
        index = self.gather(batch.index)
        self.memory[index] = self.gather(memory)
        self.delta[index] = self.gather(ball.project(batch.x, ahead, eps) - batch.x)
        self._renew()

    def _renew(self) -> None:
        """After the last step before a reset, start over: from the clock alone, so that a resumed run does the same."""
        done, period = self.clock.epoch + 1, max(1, round(self.reset * self.clock.epochs))
        if self.clock.step == self.clock.steps - 1 and done % period == 0:
            self._draw(self.clock.seed, done)

    def _draw(self, seed: int, epoch: int) -> None:
        """New starts on the surface of the ball (its corners for L∞) and no memory; the same table on every process."""
        rng = Draws(generator(self.delta.device, seed, "fgsm-mep", epoch))
        self.delta.copy_(self.attack.eps * self.attack.ball.steepest(rng.normal(self.delta)))
        self.memory.zero_()

    def forward_cost(self, steps: int) -> float:
        return 7 if self.consistency else 5
