"""Adaptive adversarial distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import NotNegative, Positive, Share
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.stage import Stage
from atbench.methods.teacher import Taught, trust


class Adaad(Taught):
    """AdaAD (Huang et al. 2023, CVPR): α · KL(p_T(x') ‖ p_S(x')) / d + (1 − α) · KL(p_T(x) ‖ p_S(x)) / d.

    p_T and p_S are the probabilities of a robust teacher, frozen and in eval mode, and of the student; d is `divisor`.
    The attack looks for where the two disagree most, and the student is taught there. Inner: maximise
    KL(p_T(x') ‖ p_S(x')) over x' from x + 0.001·N(0, 1), not clipped, in eval mode; the gradient goes through both
    networks. No label is used. Outer: x, then x' in train mode; with α = 1 the pass of x is for the running statistics
    alone.

    AdaIAD (`experiment=paper/adaiad`): α · T² · KL(p_T^τ(x') ‖ p_S^τ(x')) of logits divided by the temperature T and,
    from `begin` on, α · (1 − ω) · KL(p_S(x) ‖ p_S(x')), ω = p_T(x')_y^β (IAD, Zhu et al. 2022).
    Cost: (4k + 5) forward passes a batch with α = 1, (2k + 1) of them the teacher's; (4k + 8) with less, two more from
    `begin` on with α = 1.

    Source: boyellow/AdaAD (AT_helper.py, main.py). Its KL is a mean over classes on CIFAR-10, and summed over them (d =
    1) on CIFAR-100 and in AdaIAD. AdaIAD's code forwards x in train mode two or three times, so its running statistics
    see it more often; here once.
    Known weaknesses: what a large teacher costs, it costs in every step of the attack. Clean accuracy and AutoAttack on
    CIFAR-10 with ResNet-18, others' tables (from memory): 86.75, 50.06 %; taught by LTD's WRN-34-20 51.37 %, AdaIAD
    52.96 %.

    Args:
        stage_network, teacher, teacher_model, teacher_method: as in Taught.
        alpha: α.
        temperature: T, of the first term.
        divisor: d.
        begin: share of training after which the student trusts itself too (AdaIAD); 1: never.
        beta: β.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        teacher: str | Sequence[str] = (),
        teacher_model: str | Sequence[str] = (),
        teacher_method: str = "pgd_at",
        alpha: Share = 1.0,
        temperature: Positive = 1.0,
        divisor: Positive = 10.0,
        begin: Share = 1.0,
        beta: NotNegative = 0.1,
    ) -> None:
        super().__init__(model, attack, stage_network, teacher, teacher_model, teacher_method)
        self.alpha, self.temperature, self.divisor = alpha, temperature, divisor
        self.begin, self.beta = begin, beta

    def perturb(self, batch: Batch) -> Batch:
        return batch.with_adv(self.run_attack(Objective(self._both, disagreement), batch.x))

    def _both(self, x: Tensor) -> Tensor:
        """The teacher's logits and the student's, (B, 2, K)."""
        return torch.stack([self.teacher(x), self.model(x)], dim=1)

    def loss(self, batch: Batch) -> Loss:
        begun = self.clock.fraction >= self.begin
        with torch.set_grad_enabled(begun or self.alpha < 1):
            clean = self.model(batch.x)
        adversarial, answer = self.model(batch.x_adv), self.taught(batch.x_adv)
        distance = self.temperature**2 * kl_divergence(answer, adversarial, self.temperature).mean() / self.divisor
        total, terms = self.alpha * distance, {"kl_adv": distance.detach()}
        if self.alpha < 1:
            natural = kl_divergence(self.taught(batch.x), clean).mean() / self.divisor
            total, terms["kl_clean"] = total + (1 - self.alpha) * natural, natural.detach()
        if begun:
            omega, own = trust(answer, batch.y, self.beta), kl_divergence(clean, adversarial)
            total = total + self.alpha * ((1 - omega) * own).mean()
            terms |= {"kl_own": own.mean().detach(), "trust": omega.mean()}
        return Loss(total, terms, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return self.least_cost(4 * steps + (8 if self.alpha < 1 else 7 if self.begin < 1 else 5))


def disagreement(logits: Tensor) -> Tensor:
    """KL(p_T ‖ p_S) per example, of the logits of both, (B, 2, K)."""
    return kl_divergence(logits[:, 0], logits[:, 1])
