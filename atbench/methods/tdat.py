"""Taxonomy driven fast adversarial training."""

from __future__ import annotations

from math import tan

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.soft_labels import smooth_label
from atbench.runs.seeding import Draws, generator


class Tdat(Method):
    """TDAT (Tong et al. 2024, AAAI): CE(f(x'), y_out) + λ · mean ‖f(x₀) − f(x')‖² · tanh(1 − p_y(x₀)), p = softmax(f).

    The i-th image of a batch starts from the perturbation δ_i that the i-th image of the batch before ended with,
    whatever images they are: x₀ = x + δ_i, which is in the ball and may leave the pixels. With g = ∇CE(f(x₀), y_in),
    d the steepest direction (sign for L∞) and Π the projection on ball and pixels, x' = Π(x₀ + ε·d(g)) and
    δ_i ← x' − x. Labels relax over training: γ = max(floor, β·tan(1 − e/E)) in epoch e of E; y_in has γ on y and
    (1 − γ)/(K − 1) on each other class, y_out γ + (1 − γ)/K on y and (1 − γ)/K on the others. The squared distance is a
    sum over classes. The pass at x₀ is shared by search and update, in train mode, and nothing is held constant but x'.
    Cost: 7 forward passes a batch, and a perturbation for each image of one batch to keep.

    Source: bookman233/TDAT, TDAT.py. The paper's momentum between batches is not in what was run: there a line after
    it, and the shared memory before it, leave the last perturbation alone. The code adds 1e-7 within tanh.
    Known weakness: AutoAttack leaves 8.5 points less than PGD-10, which may be masked gradients.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255, ResNet-18: 48.33 % (third-party tables, not
    checked); the authors' log ends with 82.25 % of clean images and 56.85 % under PGD-10.

    Args:
        weight: λ.
        relaxation: β.
        floor: the least γ.
    """

    requires_hard_labels = True
    delta: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 0.6,
        relaxation: NotNegative = 0.6,
        floor: Share = 0.15,
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.relaxation, self.floor = weight, relaxation, floor

    def setup(self, data: TrainData) -> None:
        shape = (data.batch_size - data.extra_size, *data.source.shape)
        noise = Draws(generator(data.device, data.seed, "tdat")).normal(
            torch.zeros(shape, dtype=data.dtype, device=data.device)
        )
        self.register_buffer("delta", self.attack.eps * self.attack.ball.steepest(noise))

    def gamma(self) -> float:
        """γ of this epoch."""
        return min(1.0, max(self.floor, self.relaxation * tan(1 - self.clock.epoch / self.clock.epochs)))

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its pass with the update

    def loss(self, batch: Batch) -> Loss:
        ball, eps, gamma = self.attack.ball, self.attack.eps, self.gamma()
        first = self.clock.rank * len(batch)
        start = (batch.x + self.delta[first : first + len(batch)]).requires_grad_()
        before = self.model(start)
        k = before.shape[1]
        inner, outer = (smooth_label(batch.y, true, before) for true in (gamma, gamma + (1 - gamma) / k))
        grad = torch.autograd.grad(cross_entropy(before, inner).sum(), start, retain_graph=True)[0]
        x_adv = ball.project(batch.x, start.detach() + eps * ball.steepest(grad), eps)
        batch.aux["delta"] = x_adv - batch.x  # for `after_update`
        after = self.model(x_adv)
        risk = self.risk(after, outer).mean()
        doubt = 1 - before.softmax(dim=1).gather(1, batch.y[:, None])[:, 0]
        drift = ((before - after).square().sum(dim=1) * doubt.tanh()).mean()
        terms = {"ce": risk.detach(), "drift": drift.detach()}
        return Loss(risk + self.weight * drift, terms, after)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # one step of ε

    def single_step(self) -> bool:
        return True

    def after_update(self, batch: Batch) -> None:
        self.delta.copy_(self.gather(batch.aux["delta"]))

    def forward_cost(self, steps: int) -> float:
        return 7
