"""What methods share that train the members of an ensemble together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Method
from atbench.models import Ensemble


class EnsembleMethod(Method):
    """Base class of methods whose model is an ensemble. With `adversarial`, x' is what the run's attack finds against
    the ensemble; without it nothing is attacked, and the attack serves validation and evaluation alone.

    Raises ConfigError for fewer than two members.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, adversarial: bool = False) -> None:
        super().__init__(model, attack)
        count = len(model.members) if isinstance(model, Ensemble) else 1
        if count < 2:
            raise ConfigError("model.members", count, "members learn from each other", "use 2 or more, such as 3")
        self.adversarial = adversarial

    @property
    def members(self) -> list[nn.Module]:
        """The networks of the ensemble."""
        assert isinstance(self.model, Ensemble)
        return list(self.model.members)

    def perturb(self, batch: Batch) -> Batch:
        return super().perturb(batch) if self.adversarial else batch.with_adv(batch.x)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return super().fixed_steps() if self.adversarial else {}

    def adversarial_risks(self, batch: Batch) -> Tensor:
        """CE(f_m(x'), y) of each member, means over the batch, (M,)."""
        return torch.stack([self.risk(member(batch.x_adv), batch.y).mean() for member in self.members])


def pairwise_cosines(gradients: Sequence[Tensor]) -> Tensor:
    """cos(g_i, g_j) for each pair i < j of the members' gradients (B, D): (pairs, B). That of a zero gradient is 0."""
    return torch.stack([F.cosine_similarity(a, b, dim=1) for a, b in combinations(gradients, 2)])
