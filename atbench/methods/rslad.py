"""Robust soft label adversarial distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import Positive, Share
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.stage import Stage
from atbench.methods.teacher import Taught


class Rslad(Taught):
    """RSLAD (Zi et al. 2021, ICCV, arXiv 2108.07969): α · KL(p_T(x) ‖ p_S(x')) / d + (1 − α) · KL(p_T(x) ‖ p_S(x)) / d.

    p_T are the probabilities of a robust teacher, frozen and in eval mode, at the clean image; they stand wherever
    another method has the label, in the attack too. p_S are the student's, d is `divisor`. Inner: maximise
    KL(p_T(x) ‖ p_S(x')) over x' from x + 0.001·N(0, 1), not clipped, in eval mode; p_T(x) is computed once a batch.
    Outer: x', then x in train mode, both with gradient.
    Cost: (2k + 7) forward passes a batch, one of them the teacher's.

    Source: zibojia/RSLAD (rslad_loss.py, resnet18_rslad_cifar10.py). Its KL is a mean over classes on CIFAR-10 and ten
    times that on CIFAR-100: d is 10 in both. Its log(p_T + 1e-5) changes the value that is printed and no gradient.
    Known weaknesses: a student is no better than its teacher's labels, and stronger teachers do not make stronger
    students. Clean accuracy and AutoAttack, CIFAR-10, ResNet-18 taught by TRADES' WRN-34-10: 83.38, 51.49 %; with
    teachers that had generated images 40 to 47 % (others' tables, from memory).

    Args:
        stage_network, teacher, teacher_model, teacher_method: as in Taught.
        alpha: α.
        divisor: d.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        teacher: str | Sequence[str] = (),
        teacher_model: str | Sequence[str] = (),
        teacher_method: str = "trades",
        alpha: Share = 5 / 6,
        divisor: Positive = 10.0,
    ) -> None:
        super().__init__(model, attack, stage_network, teacher, teacher_model, teacher_method)
        self.alpha, self.divisor = alpha, divisor

    def perturb(self, batch: Batch) -> Batch:
        taught = self.taught(batch.x)
        x_adv = self.run_attack(Objective(self.model, kl_from, taught.softmax(dim=1)), batch.x)
        return batch.with_adv(x_adv, taught=taught)

    def loss(self, batch: Batch) -> Loss:
        taught = batch.aux["taught"]
        adversarial, clean = self.model(batch.x_adv), self.model(batch.x)
        robust, natural = (kl_divergence(taught, logits).mean() / self.divisor for logits in (adversarial, clean))
        total = self.alpha * robust + (1 - self.alpha) * natural
        return Loss(total, {"kl_adv": robust.detach(), "kl_clean": natural.detach()}, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return self.least_cost(2 * steps + 7)
