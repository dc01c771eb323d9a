"""Adversarial training with distillation from two teachers; averaging of the weights is `plus.swa`."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Positive
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.methods.stage import Stage
from atbench.models import Frozen

TEACHERS = {"standard": "atbench.methods.standard.Standard", "robust": "atbench.methods.pgd_at.PgdAt"}


class KdSwa(Method):
    """KD+SWA (Chen et al. 2021, ICLR): a · CE(z(x'), y) + b · KD(z(x'), s(x')) + c · KD(z(x'), r(x')), and SWA.

    z are the network's logits, s and r those of two teachers of the same architecture, trained before it and frozen: s
    on clean images, r by PGD-AT under the same attack. KD(z, t) = −T² · Σ_k softmax(t/T)_k log softmax(z/T)_k, which
    has the gradient of the KL. Inner: cross-entropy against the true labels; teachers see the adversarial image, in
    eval mode. The weights are averaged by `plus.swa`, which the method's YAML switches on.
    Cost: (2k + 5) forward passes a batch, one of them each teacher's; before that the teachers' own runs.

    Source: VITA-Group/Alleviate-Robust-Overfitting (main_adv.py, utils.py), which attacks in train mode
    (`attack.bn=train`). Its teachers are the best checkpoints of their runs, s by clean and r by robust accuracy; so is
    r here, and s is the last, for the best epoch is chosen under attack.
    Known weaknesses: three trainings for one network. An AutoAttack figure of the authors was not checked.

    Args:
        ce: a.
        standard, robust: b and c; a teacher of weight 0 is not trained.
        temperature: T.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        ce: NotNegative = 0.3,
        standard: NotNegative = 0.1,
        robust: NotNegative = 0.6,
        temperature: Positive = 2.0,
    ) -> None:
        super().__init__(model, attack)
        weights = {"standard": standard, "robust": robust}
        self.ce, self.weights = ce, {name: weight for name, weight in weights.items() if weight}
        self.temperature = temperature
        self.teachers = nn.ModuleDict({name: Frozen(deepcopy(model)) for name in self.weights})

    def pretraining(self) -> dict[str, Stage]:
        # Seeds of their own: a teacher that begins like its student would walk the same way for a while.
        offsets = {name: number for number, name in enumerate(TEACHERS, start=1)}
        return {
            name: Stage({"_target_": TEACHERS[name]}, offset=offsets[name], best=name == "robust", teaches=kind)
            for name, kind in (("standard", "clean"), ("robust", "robust"))
            if name in self.weights
        }

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        for name, teacher in self.teachers.items():
            teacher.load_state_dict(stages[name].state_dict())

    def perturb(self, batch: Batch) -> Batch:
        batch = super().perturb(batch)
        with torch.no_grad():
            return batch.with_adv(said={name: teacher(batch.x_adv) for name, teacher in self.teachers.items()})

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y).mean()
        total, terms = self.ce * risk, {"ce": risk.detach()}
        for name, weight in self.weights.items():
            distance = distillation(logits, batch.aux["said"][name], self.temperature).mean()
            total, terms[f"kd_{name}"] = total + weight * distance, distance.detach()
        return Loss(total, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 3 + len(self.weights)


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · cross-entropy of softmax(z/T) against softmax(t/T), (B,)."""
    targets = (teacher / temperature).softmax(dim=1)
    return temperature**2 * F.cross_entropy(logits / temperature, targets, reduction="none")
