"""Single-step adversarial training without abnormal adversarial examples."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.errors import refuse_unknown
from atbench.methods.base import Loss, Method

CE_TERMS = ("code", "formula")


class Aaer(Method):
    """AAER (Lin et al. 2023, NeurIPS, arXiv 2404.08154): CE(f(x'), y) + λ₁·|A|/B · (λ₂·C_A + λ₃·max(D_A − D_N, 0)).

    An example is abnormal, in A, where the attack's step lowered its loss, ℓ(x + η) > ℓ(x'), and normal, in N,
    otherwise: before and at catastrophic overfitting A fills up. C_A is the mean of ℓ(x + η) − ℓ(x') over A; D_S the
    mean of ‖f(x + η) − f(x')‖² over S, f(x + η) a constant, and D_N a constant as a whole. |A|, C and D are those of
    the joint batch, and the term counts where neither set is empty. One step from a random start η, in train mode: with
    `clip` x' is projected on the ball (RS-FGSM), without it, it lies up to (noise + step size) · ε away (N-FGSM).
    Cost: 5 forward passes a batch.

    Paper and code: in tmllab/2023_NeurIPS_AAER (CIFAR10/AAER.py) both losses of C_A are constants, so that λ₂ changes
    the loss and no gradient (`ce_term: code`); in the paper it is a penalty (`formula`).
    Known weakness: λ₂ and λ₃ are tuned for each kind of start.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 47.38 % with N-FGSM's start (FastAT Benchmark,
    with a recipe of its own).

    Args:
        abnormal: λ₁.
        ce: λ₂.
        distance: λ₃.
        noise: the start's radius in units of ε.
        clip: whether x' is projected on the ball.
        ce_term: `code` or `formula`.
    """

    takes_micro_batches = False

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        abnormal: NotNegative = 1.0,
        ce: NotNegative = 2.5,
        distance: NotNegative = 1.5,
        noise: NotNegative = 1.0,
        clip: bool = True,
        ce_term: str = "code",
    ) -> None:
        super().__init__(model, attack)
        refuse_unknown("method.ce_term", ce_term, CE_TERMS)
        self.abnormal, self.ce, self.distance = abnormal, ce, distance
        self.noise, self.clip, self.ce_term = noise, clip, ce_term

    def perturb(self, batch: Batch) -> Batch:
        objective, attack = FirstLogits(self.model, self.attack_risk, batch.y), self.attack
        start = attack.begin(batch.x, self.noise * attack.eps, self.rng())
        eps = attack.eps if self.clip else self.noise * attack.eps + attack.step_size
        x_adv = self.run_attack(objective, batch.x, start=start, eps=eps)
        return batch.with_adv(x_adv, before=objective.first)

    def loss(self, batch: Batch) -> Loss:
        logits, before = self.model(batch.x_adv), batch.aux["before"]
        after = cross_entropy(logits, batch.y)
        fall = self.gather(cross_entropy(before, batch.y) - after, differentiable=True)
        change = self.gather((logits - before).square().sum(dim=1), differentiable=True)
        risk = self.risk(logits, batch.y).mean()
        # Masks as factors: to look at them would wait for the device.
        abnormal = (fall.detach() > 0).to(risk.dtype)
        normal, share = 1 - abnormal, abnormal.mean()
        count = abnormal.sum().clamp_min(1)
        ce = (abnormal * fall).sum() / count
        ce = ce.detach() if self.ce_term == "code" else ce
        excess = (abnormal * change).sum() / count - ((normal * change).sum() / normal.sum().clamp_min(1)).detach()
        penalty = self.abnormal * share * (self.ce * ce + self.distance * excess.relu())
        penalty = penalty * ((share > 0) & (share < 1))
        terms = {"ce": risk.detach(), "penalty": penalty.detach(), "abnormal": share}
        return Loss(risk + penalty, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 3


class FirstLogits(Objective):
    """An objective that keeps the network's outputs at the starting point, (B, K), in `first`."""

    first: Tensor

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        value, outputs = super().__call__(x_adv, rows, step)
        if step == 0:
            self.first = outputs.detach()
        return value, outputs
