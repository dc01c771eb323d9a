"""FGSM training with a penalty on curvature along the step."""

from __future__ import annotations

from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Positive
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.second_order import differentiable_gradient


class Fgsmr(Method):
    """adv.FGSMR (Huang et al. 2020, arXiv 2011.05157): CE(f(x'), y) + λ · (1/B) Σ ‖∇ℓ(x_i + h·δ_i) − ∇ℓ(x_i)‖₂^q.

    ℓ(x) = CE(f(x), y) of one example, and δ = x' − x the FGSM step of length ε. The difference of the two gradients is
    the curvature of the loss along the step, times its length; where it is small, one step finds what many steps find.
    Both gradients are of train mode, in forwards of their own, x + h·δ first. The one at x + h·δ is differentiated
    again to the weights, and so is that at x unless `detach`.
    Cost: 11 forward passes a batch, 15 without `detach`, 3 more where h is not 1; torch's second derivative of strided
    convolutions takes a little more.

    Unverified, or from memory: all but the abstract, which says that the curvature of the loss along the FGSM direction
    is penalised; λ, h, q and what is held constant are choices here. No code of the authors is known. Run beside it:
    the curvature regularizer of LIONS-EPFL/ELLE, core/utils/train.py (`reg == "CURE"`), which is h = 1, q = 2 with
    `detach`, and has the gradient of the *mean* cross-entropy, so that its λ is B² times ours.
    Known weakness: with ReLU the second derivative sees the kinks alone. No AutoAttack figure is known.

    Args:
        curvature: λ.
        reach: h, as a share of the step.
        power: q.
        detach: whether ∇ℓ(x) is a constant.
    """

    second_order = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        curvature: NotNegative = 0.3,
        reach: Positive = 1.0,
        power: Positive = 2.0,
        detach: bool = True,
    ) -> None:
        super().__init__(model, attack)
        self.curvature, self.reach, self.power, self.detach = curvature, reach, power, detach

    def loss(self, batch: Batch) -> Loss:
        x, delta = batch.x.detach().requires_grad_(), batch.x_adv - batch.x
        ahead = (batch.x + self.reach * delta if self.reach != 1 else batch.x_adv).detach().requires_grad_()
        far, logits = differentiable_gradient(self.model, ahead, batch.y)
        near, _ = differentiable_gradient(self.model, x, batch.y)
        if self.reach != 1:
            logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y).mean()
        change = far - (near.detach() if self.detach else near)
        # The norm itself has no derivative at 0, which a sure example reaches; its square has.
        bent = change.square().sum(dim=1)
        curvature = (bent if self.power == 2 else bent.clamp_min(1e-24) ** (self.power / 2)).mean()
        terms = {"ce": risk.detach(), "curvature": curvature.detach()}
        return Loss(risk + self.curvature * curvature, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 10 + (0 if self.detach else 4) + (0 if self.reach == 1 else 3)
