"""FGSM from universal perturbations: one, one a class, or one a learned group of images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.models import Network, attack_mode
from atbench.runs.seeding import Draws, generator


class FgsmUap(Method):
    """FGSM-UAP, FGSM-CUAP (Pan et al. 2024, AAAI): CE(f(x'), y) + λ · MSE(f(x'), f(x₀)), x' one step of ε from x₀.

    All images (UAP) or those of one class (CUAP) are a group r with a perturbation u_r and a momentum m_r. With Π the
    projection on ball and pixels and d the steepest direction (sign for L∞) the search starts at x₀ = Π(x + u_r), and
    with g = ∇CE(f(x₀), y), x' = Π(x₀ + ε·d(g)). After the update, of each group in the batch,
    m_r ← mean_r h / ‖h‖₁ + μ·m_r and u_r is cut to the radius R at u_r + R·d(m_r), with ‖h‖₁ over the joint batch and
    h = ∇(CE(f(x₀), y) + λ · MSE(f(x'), f(x₀))) at x₀, x' fixed. In L∞ u_r has the values −R, 0 and R; R exceeds ε, and
    the start keeps ±ε. The authors smooth the search's labels as the loss's (`train.attack_label_smoothing`). The MSE
    is a mean over batch and classes, its gradient flows through both passes; that at x₀ is shared by search and update,
    in train mode.
    Cost: 7 forward passes a batch, and no perturbation of single images to keep.

    Source: fzjcdt/FastAT_Benchmark, fast_at/fgsm_uap.py and fgsm_cuap.py (the authors'; μ is fixed there). It means to
    follow g; the gradient of the MSE is added to it by the backward pass of the update, in the same tensor.
    Known weakness: like all single-step methods it can overfit catastrophically at larger ε.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255, ResNet-18: 49.44 % of 56.49 % under PGD-10 (UAP)
    and 49.55 % of 56.30 % (CUAP), from 80.6 % and 80.8 % of clean images (FastAT Benchmark).

    Args:
        consistency: λ.
        momentum: μ.
        reach: R in units of ε.
        by_class: whether each class has a perturbation of its own.
    """

    u: Tensor
    m: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        consistency: NotNegative = 10.0,
        momentum: NotNegative = 0.3,
        reach: NotNegative = 1.25,
        by_class: bool = False,
    ) -> None:
        super().__init__(model, attack)
        self.consistency, self.momentum, self.reach = consistency, momentum, reach
        self.by_class = self.requires_hard_labels = by_class

    def setup(self, data: TrainData) -> None:
        self._allocate(data, len(data.source.classes) if self.by_class else 1)

    def _allocate(self, data: TrainData, groups: int) -> None:
        """Perturbations on the surface of the ball of radius R (its corners for L∞), and no momentum."""
        zeros = torch.zeros((groups, *data.source.shape), dtype=data.dtype, device=data.device)
        rng = Draws(generator(data.device, data.seed, "fgsm-uap"))
        self.register_buffer("u", self.reach * self.attack.eps * self.attack.ball.steepest(rng.normal(zeros)))
        self.register_buffer("m", zeros)

    def perturb(self, batch: Batch) -> Batch:
        group = batch.y if self.by_class else torch.zeros_like(batch.index)
        return self._start(batch, batch.x, group)

    def _start(self, batch: Batch, x: Tensor, group: Tensor) -> Batch:
        """The batch with x₀, each image's perturbation added to `x`; its search shares its pass with the update."""
        start = self.attack.ball.project(batch.x, x + self.u[group], self.attack.eps)
        return batch.with_adv(start=start, group=group)

    def loss(self, batch: Batch) -> Loss:
        ball, eps, start = self.attack.ball, self.attack.eps, batch.aux["start"].detach().requires_grad_()
        before = self.model(start)
        grad = torch.autograd.grad(self.attack_risk(before, batch.y).sum(), start, retain_graph=True)[0]
        batch.aux.update(point=start, gradient=grad)  # for `after_update`; backward leaves that of λ · MSE in the point
        after = self.model(ball.project(batch.x, start.detach() + eps * ball.steepest(grad), eps))
        risk, drift = self.risk(after, batch.y).mean(), F.mse_loss(after, before)
        terms = {"ce": risk.detach(), "mse": drift.detach()}
        return Loss(risk + self.consistency * drift, terms, after)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # one step of ε

    def single_step(self) -> bool:
        return True

    def after_update(self, batch: Batch) -> None:
        ball, radius = self.attack.ball, self.reach * self.attack.eps
        grad = self.gather(batch.aux["gradient"] + len(batch) * batch.aux["point"].grad)  # of sums over the batch
        group = self.gather(batch.aux["group"])
        grad = grad / grad.abs().sum().clamp_min(torch.finfo(grad.dtype).tiny)
        members = F.one_hot(group, len(self.u)).to(grad.dtype).T  # (groups, B)
        count = members.sum(dim=1).view(-1, 1, 1, 1)
        mean = (members @ grad.flatten(1)).view_as(self.m) / count.clamp_min(1)
        self.m.copy_(torch.where(count > 0, mean + self.momentum * self.m, self.m))
        self.u.copy_(torch.where(count > 0, ball.shrink(self.u + radius * ball.steepest(self.m), radius), self.u))

    def forward_cost(self, steps: int) -> float:
        return 7


class Selector(nn.Module):
    """FUAP's head: scores of the groups W₁·h and logits W₂·relu(W₁·h) from features h (B, d)."""

    def __init__(self, features: int, groups: int, classes: int) -> None:
        super().__init__()
        self.scores, self.classifier = nn.Linear(features, groups), nn.Linear(groups, classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.scores(features).relu())
        return logits


class FgsmFuap(FgsmUap):
    """FGSM-FUAP (Pan et al. 2024, AAAI): CE(f(x'), y) + λ · MSE(f(x'), f(x₀)), a learned group chooses x₀.

    As FGSM-UAP (`fgsm_uap`), with the group of an image found among U by a head on the network's features h, the input
    of its own head: r = argmax W₁·h(x_r) at a random start x_r, and x₀ = Π(x_r + u_r). The head learns by
    CE(W₂·relu(W₁·h(x_r)), y) in the group `selector`, with an optimizer of its own; it has no gradient to the network,
    and chooses before its step. The pass at x_r is in train mode, so that running statistics count it.
    Cost: 8 forward passes a batch.

    Source: fzjcdt/FastAT_Benchmark, fast_at/fgsm_fuap.py (the authors').
    Known weakness: like all single-step methods it can overfit catastrophically at larger ε.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255, ResNet-18: 49.73 % of 56.35 % under PGD-10, from
    80.6 % of clean images (FastAT Benchmark).

    Args:
        consistency: λ.
        momentum: μ.
        reach: R in units of ε.
        number: U.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        consistency: NotNegative = 10.0,
        momentum: NotNegative = 0.3,
        reach: NotNegative = 1.25,
        number: Count = 50,
    ) -> None:
        super().__init__(model, attack, consistency, momentum, reach)
        if not isinstance(model, Network):
            why = "groups are found from one network's features"
            raise ConfigError("model", type(model).__name__, why, "use a model with stages, and model.members=1")
        self.number = number

    def setup(self, data: TrainData) -> None:
        self._allocate(data, self.number)
        with torch.no_grad(), attack_mode(self.model, "eval"):
            width = self._features(self.u[:1]).shape[1]
        self.selector = Selector(width, self.number, len(data.source.classes)).to(self.u)

    def groups(self) -> dict[str, nn.Module]:
        return {"model": self.model, "selector": self.selector}

    def _features(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, Network)
        return self.model.features(x).flatten(1).to(x.dtype)

    def perturb(self, batch: Batch) -> Batch:
        noisy = self.attack.begin(batch.x, self.attack.eps, self.rng())
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            features = self._features(noisy)
            group = self.selector.scores(features).argmax(dim=1)
        return self._start(batch, noisy, group).with_adv(features=features)

    def loss(self, batch: Batch) -> Loss:
        found = super().loss(batch)
        risk = self.risk(self.selector(batch.aux["features"]), batch.y).mean()
        terms: dict[str, Any] = {**found.terms, "selector": risk.detach()}
        return Loss(found.total + risk, terms, found.logits)

    def forward_cost(self, steps: int) -> float:
        return 8
