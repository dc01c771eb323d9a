"""Introspective adversarial distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch
from atbench.errors import ConfigError, refuse_unknown
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.stage import Stage
from atbench.methods.teacher import Taught, trust

ASKED = ("clean", "adversarial")


class Iad(Taught):
    """IAD (Zhu et al. 2022, ICLR, arXiv 2106.04928): KL(p_T(x) ‖ p_S(x')) + (1 − ω) · KL(p_S(x) ‖ p_S(x')).

    p_T and p_S are the probabilities of a robust teacher, frozen and in eval mode, and of the student. The teacher was
    not trained on what attacks the student, and less and less of its answers there is right: ω = p_T(x')_y^β is its
    probability of the true class, and as it falls the student trusts itself instead, p_S(x) with gradient. The first
    part of training, up to `begin`, is without that term. Inner: PGD on the student's cross-entropy with the true
    labels, from a uniform start that is not clipped to the box, in train mode.

    IAD-I builds on ARD: the teacher is asked about the clean image. IAD-II builds on AKD2: it is asked about x', its
    term is multiplied by ω, and beside a · (both terms) there are b · KL(p_C(x') ‖ p_S(x')) of a second teacher,
    trained on clean images, and (1 − a − b) · CE(z(x'), y). Outer: x', then x, in train mode; before `begin` IAD-I
    passes x for the running statistics alone, IAD-II not at all.
    Cost: (2k + 8) forward passes a batch from `begin` on, two of them teachers'; before it (2k + 5).

    Source: ZFancy/IAD (IAD-I.py, IAD-II.py). IAD-I's code does not multiply the teacher's term by ω, and the paper does
    (`method.weighted=true`). The code of IAD-I forwards x' and, from `begin` on, x once more for nothing: its running
    statistics see them twice.
    Known weaknesses: where the teacher is wrong the student has its own clean answer alone, right or not. AutoAttack on
    CIFAR-10, ResNet-18 with a teacher trained by PGD-AT: 48.66 % (others' tables, from memory).

    Args:
        stage_network, teacher, teacher_model, teacher_method: as in Taught.
        clean_teacher: of the second teacher, words or a path as of the first; with b = 0 there is none.
        robust, clean: a and b.
        asked: the images about which the teacher is asked, and on which the cross-entropy is: `clean` or `adversarial`.
        weighted: whether ω multiplies the teacher's term.
        beta: β.
        begin: share of training after which the student trusts itself; 1: never.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        teacher: str | Sequence[str] = (),
        teacher_model: str | Sequence[str] = (),
        teacher_method: str = "pgd_at",
        clean_teacher: str | Sequence[str] = (),
        robust: NotNegative = 1.0,
        clean: NotNegative = 0.0,
        asked: str = "clean",
        weighted: bool = False,
        beta: NotNegative = 0.1,
        begin: Share = 0.3,
    ) -> None:
        super().__init__(model, attack, stage_network, teacher, teacher_model, teacher_method)
        refuse_unknown("method.asked", asked, ASKED)
        if robust + clean > 1:
            why = "the cross-entropy has what they leave of 1"
            raise ConfigError("method.robust + method.clean", robust + clean, why, "make them 1 or less")
        self.clean_stage = _clean_teacher(clean_teacher) if clean else None
        self.clean_teacher = stage_network(self.clean_stage) if self.clean_stage else None
        self.robust, self.clean, self.ce = robust, clean, 1 - robust - clean
        self.asked, self.weighted, self.beta, self.begin = asked, weighted, beta, begin

    def pretraining(self) -> dict[str, Stage]:
        further = {"clean_teacher": self.clean_stage} if self.clean_stage else {}
        return {**super().pretraining(), **further}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        super().load_pretrained(stages)
        if self.clean_teacher is not None:
            self.clean_teacher.load_state_dict(stages["clean_teacher"].state_dict())

    def loss(self, batch: Batch) -> Loss:
        adversarial, begun = self.model(batch.x_adv), self.clock.fraction >= self.begin
        logits = self._clean_logits(batch.x, begun) if begun or self.asked == "clean" else adversarial
        answer = self.taught(batch.x if self.asked == "clean" else batch.x_adv)
        distance = kl_divergence(answer, adversarial)
        terms = {"kl": distance.mean().detach()}
        if begun:
            answer = answer if self.asked == "adversarial" else self.taught(batch.x_adv)
            omega, own = trust(answer, batch.y, self.beta), kl_divergence(logits, adversarial)
            distance = (omega if self.weighted else 1) * distance + (1 - omega) * own
            terms |= {"kl_own": own.mean().detach(), "trust": omega.mean()}
        total = self.robust * distance.mean()
        if self.clean_teacher is not None:
            with torch.no_grad():
                answer = self.clean_teacher(batch.x_adv)
            further = kl_divergence(answer, adversarial).mean()
            total, terms["kl_clean"] = total + self.clean * further, further.detach()
        if self.ce:
            risk = self.risk(logits if self.asked == "clean" else adversarial, batch.y).mean()
            total, terms["ce"] = total + self.ce * risk, risk.detach()
        return Loss(total, terms, adversarial)

    def _clean_logits(self, x: Tensor, begun: bool) -> Tensor:
        """z(x), with a gradient where a term has it."""
        with torch.set_grad_enabled(begun or (self.ce > 0 and self.asked == "clean")):
            logits: Tensor = self.model(x)
        return logits

    def forward_cost(self, steps: int) -> float | None:
        return self.least_cost(2 * steps + 7 + (self.asked == "clean") + (self.clean > 0))


def _clean_teacher(teacher: str | Sequence[str]) -> Stage:
    if isinstance(teacher, str):
        return Stage(checkpoint=teacher, teaches="clean")
    standard = {"_target_": "atbench.methods.standard.Standard"}
    return Stage(standard, offset=2, overrides=tuple(teacher), teaches="clean")
