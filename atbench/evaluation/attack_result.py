"""Result of one attack on one split, example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.evaluation.eval_results import NEVER
from atbench.evaluation.metrics import Array

#: In `first_broken`: no step of PGD broke this example.
UNBROKEN = torch.iinfo(torch.int16).max
#: Columns of a measurement: its cost, and what is kept of broken examples.
COST = ("seconds", "forwards", "gradients")
KEPT = ("x_adv", "eight", "z", "fooled")


def _empty() -> Array:
    return np.zeros(0)


@dataclass(frozen=True)
class AttackResult:
    """One attack on n examples: PGD at one radius, on one member of an ensemble, a distortion at one size, any other.

    name: `pgd-20`, `fgsm`, `cw_linf`, `square`, ...
    access: `gradient`, `features`, `queries`, `transfer` or `noise`, as `Attack.access`.
    tried, broken: (n,) booleans on the CPU; `broken` is a subset of `tried`. A sequential attack tries only examples
        that are still robust.
    seconds, forwards, gradients: its cost; passes are counted in single images, of a member in those of the member.
    settings: the attack's options, norm and eps among them. minimal: whether it is a minimum-norm attack.
    rows: int64 (m,), indices of the broken examples. kept: columns (m, ...) of these: `x_adv`, the adversarial images,
        float32 (m, C, H, W), or `z`, a distortion's parameters; `eight`, booleans, whether they are still misclassified
        with pixels rounded to 8 bits; `fooled`, booleans (m, M), which members of an ensemble get them wrong.
    logits: (n, K) after the attack, NaN where it was not tried.
    distance: (n,) norms of the misclassified perturbations, in the ball or not; infinite where none is misclassified,
        NaN where not tried.
    first_broken: int64 (n,), of PGD: the first step at which an example broke at this or a smaller radius; UNBROKEN
        where none did, 0 where it is wrong without an attack.

    What an attack does not have is empty.
    """

    name: str
    access: str
    tried: Tensor
    broken: Tensor
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    minimal: bool = False
    rows: Array = field(default_factory=_empty)
    kept: Mapping[str, Array] = field(default_factory=dict)
    logits: Array = field(default_factory=_empty)
    distance: Array = field(default_factory=_empty)
    first_broken: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, name: str, access: str, tried: Tensor, columns: Mapping[str, Array], **given: Any) -> AttackResult:
        """The result that has these columns of the examples `tried`, in their order: `broken`, `seconds`, `forwards`,
        `gradients`, and what else the attack measured. `given` are further fields.
        """
        rows, n, hit = tried.nonzero().flatten().numpy(), len(tried), columns["broken"]
        whole = dict[str, Array]()
        for key in ("logits", "distance"):
            if key in columns:
                whole[key] = np.full((n, *columns[key].shape[1:]), np.nan, columns[key].dtype)
                whole[key][rows] = columns[key]
        broken = torch.zeros_like(tried).index_fill_(0, torch.from_numpy(rows[hit]), True)
        forwards, gradients = (round(float(columns[key].sum())) for key in COST[1:])
        cost = {"seconds": round(float(columns["seconds"].sum()), 3), "forwards": forwards, "gradients": gradients}
        kept = {key: columns[key][hit] for key in KEPT if key in columns}
        fields: dict[str, Any] = {**cost, **whole, **given}
        return cls(name, access, tried, broken, rows=rows[hit], kept=kept, **fields)

    @property
    def cost(self) -> dict[str, float]:
        return {key: getattr(self, key) for key in COST}

    @property
    def broken_at(self) -> Array:
        """`first_broken` as it is stored: int16, NEVER where nothing broke an example."""
        return torch.where(self.first_broken == UNBROKEN, NEVER, self.first_broken).to(torch.int16).numpy()


def total_cost(results: Sequence[AttackResult]) -> dict[str, float]:
    """`seconds`, `forwards` and `gradients` of several attacks."""
    sums = {key: sum(getattr(result, key) for result in results) for key in COST}
    return {**sums, "seconds": round(sums["seconds"], 3)}
