"""Guided adversarial training: one attack step whose gradient a relaxation of the loss guides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.models import attack_mode


class GuidedMethod(Method):
    """Base class of GAT and NuAT: CE(f(x), y) + λ · D(f(x'), f(x)), with the same D in the attack.

    Inner: from the corner x + κε·sign(U) one step of length ε on CE(f(x'), y) + λ · D, in eval mode; f(x) in it is that
    of the clean batch under its own statistics. With `alternate` every second step of an epoch, the first one among
    them, climbs the cross-entropy alone. Outer: cross-entropy of the *clean* images, and D between both, x' and x in
    forwards of their own in this order, in train mode; no gradient is stopped.
    Cost: 9 forward passes a batch.

    The authors take the f(x) of the attack from a forward that moves the running statistics, which so see the clean
    batch twice and the adversarial one once; here each once.

    Args:
        weight: λ, the largest where it changes.
        noise: κ, the size of the start in units of ε.
        alternate: whether every second attack leaves D out.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, weight: NotNegative, noise: Share, alternate: bool
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.noise, self.alternate = weight, noise, alternate

    @property
    def current_weight(self) -> float:
        """λ at this step."""
        raise NotImplementedError

    def distance(self, logits: Tensor, clean: Tensor) -> Tensor:
        """D of each example, (b,), between logits (b, K) at x' and at x; its mean over the joint batch counts."""
        raise NotImplementedError

    def perturb(self, batch: Batch) -> Batch:
        with torch.no_grad(), attack_mode(self, "batch"):
            clean = self.model(batch.x)
        weight = 0.0 if self.alternate and self.clock.step % 2 == 0 else self.current_weight

        def value(logits: Tensor, y: Tensor, clean: Tensor) -> Tensor:
            ce = self.attack_risk(logits, y)
            return ce + weight * self.distance(logits, clean) if weight else ce

        start = self.attack.begin(batch.x, self.noise * self.attack.eps, self.rng())
        return batch.with_adv(self.run_attack(Objective(self.model, value, (batch.y, clean)), batch.x, start=start))

    def loss(self, batch: Batch) -> Loss:
        adversarial, clean = self.model(batch.x_adv), self.model(batch.x)
        risk, distance = self.risk(clean, batch.y).mean(), self.distance(adversarial, clean).mean()
        terms = {"ce": risk.detach(), "distance": distance.detach()}
        return Loss(risk + self.current_weight * distance, terms, adversarial)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 7


class Gat(GuidedMethod):
    """GAT (Sriramanan et al. 2020, NeurIPS, arXiv 2011.14969): CE(f(x), y) + λ · (1/B) Σ ‖p(x'_i) − p(x_i)‖².

    p is the softmax. The squared distance of the probabilities, at most 2, gives the single step of the attack a
    direction where the cross-entropy alone is masked (see `GuidedMethod`). λ grows by a factor late in training.

    Paper and code: val-iisc/GAMA-GAT, CIFAR10/GAT_cifar10.py. On MNIST its attack has the second term at every step
    (`alternate: false`) and starts at κ = 1; λ = 15 triples at a half of training.
    Robust accuracy later measured by AutoAttack on CIFAR-10 at 8/255: 47.30 %; PGD-20 of the authors: 53.13 % (their
    README, ResNet-18).

    Args:
        weight: λ.
        noise: κ.
        alternate: whether every second attack has cross-entropy alone.
        growth: factor of λ in the end.
        late: share of training from which it holds.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 10.0,
        noise: Share = 0.5,
        alternate: bool = True,
        growth: NotNegative = 4.0,
        late: Share = 86 / 100,
    ) -> None:
        super().__init__(model, attack, weight, noise, alternate)
        self.growth, self.late = growth, late

    @property
    def current_weight(self) -> float:
        return self.weight * (self.growth if self.clock.fraction >= self.late else 1.0)

    def distance(self, logits: Tensor, clean: Tensor) -> Tensor:
        return (logits.softmax(dim=1) - clean.softmax(dim=1)).square().sum(dim=1)
