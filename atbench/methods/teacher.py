"""What robust distillation has in common: a robust teacher, which is trained first, a finished run or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.errors import ConfigError, refuse_unknown
from atbench.methods.base import Method
from atbench.methods.stage import Stage

#: How a teacher is trained first: its method, and the attack of it where that differs from the student's.
TEACHERS = {
    "pgd_at": ("atbench.methods.pgd_at.PgdAt", ("attack.start=uniform", "attack.bn=eval")),
    "trades": ("atbench.methods.trades.Trades", ("attack.start=gaussian", "attack.bn=eval")),
}


class Taught(Method):
    """A method with a robust teacher, which is frozen, in eval mode, and tested before it teaches.

    Args:
        stage_network: makes the network of a stage.
        teacher: the words of a command line that tell the teacher's own run from this one (`['model=wrn_34_10']`; none:
            the run's network), or the path of a finished run, a checkpoint in it, an export or a file of weights.
        teacher_model: the network of a file of weights, by its name or as words (`['model=wrn', 'model.depth=34']`).
        teacher_method: how a teacher is trained first, `pgd_at` or `trades`.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        teacher: str | Sequence[str] = (),
        teacher_model: str | Sequence[str] = (),
        teacher_method: str = "pgd_at",
    ) -> None:
        super().__init__(model, attack)
        self.stage = robust_teacher(teacher, teacher_model, teacher_method)
        self.teacher = stage_network(self.stage)

    def pretraining(self) -> dict[str, Stage]:
        return {"teacher": self.stage}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        self.teacher.load_state_dict(stages["teacher"].state_dict())

    def taught(self, x: Tensor) -> Tensor:
        """The teacher's logits, without gradient."""
        with torch.no_grad():
            logits: Tensor = self.teacher(x)
        return logits

    def least_cost(self, passes: float) -> float | None:
        """`passes`, the teacher's among them, where those cost what the student's do."""
        sizes = [sum(each.numel() for each in network.parameters()) for network in (self.model, self.teacher)]
        return passes if sizes[0] == sizes[1] else None


def robust_teacher(teacher: str | Sequence[str], model: str | Sequence[str], method: str) -> Stage:
    """The stage of a robust teacher: the selected epoch of its training.

    teacher: words of a command line that tell its training from this run (none: the run's network and data), or a path:
        a finished run's folder, a checkpoint in it, an export, or a file of weights of anybody.
    model: of a file of weights, its network: a model's name, or words that tell it from the run's (`['model=wrn_34_10',
        'model.padding=same']`).
    method: what a teacher that is trained first is trained by, a name in TEACHERS.
    """
    words = (f"model={model}",) if isinstance(model, str) else tuple(model)
    if isinstance(teacher, str):
        return Stage(checkpoint=teacher, overrides=words, best=True, teaches="robust")
    if words:
        why = "is the network of a file of weights, and no file is named"
        raise ConfigError("method.teacher_model", " ".join(words), why, "write method.teacher=FILE, or leave it out")
    refuse_unknown("method.teacher_method", method, list(TEACHERS), "way to train a teacher")
    target, attack = TEACHERS[method]
    # A seed of its own: a teacher that begins like its student would walk the same way for a while.
    return Stage({"_target_": target}, offset=1, overrides=(*attack, *teacher), best=True, teaches="robust")


def trust(teacher: Tensor, y: Tensor, beta: float) -> Tensor:
    """ω = p_T(x')_y^β of each example (IAD, Zhu et al. 2022): how much a teacher's answer is worth, (B,)."""
    return (-beta * F.cross_entropy(teacher, y, reduction="none")).exp()
