"""Result of one attack on one split, example by example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
#: In `first_broken`: no step of PGD broke this example.
UNBROKEN = torch.iinfo(torch.int16).max


def _empty() -> Array:
    return np.zeros(0)


@dataclass(frozen=True)
class AttackResult:
    """One attack on n examples; the arrays after the cost are empty in results that only the audit compares.

    name: `pgd-20`, `fgsm`, `cw_linf`, `square`, ...
    access: `gradient`, `features`, `queries`, `transfer` or `noise`, as `Attack.access`.
    tried, broken: (n,) booleans on the CPU; `broken` is a subset of `tried`. A sequential attack tries only examples
        that are still robust.
    seconds, forwards, gradients: its cost; passes are counted in single images.
    settings: the attack's options, norm and eps among them. minimal: whether it is a minimum-norm attack.
    rows, x_adv, eight_bit: int64 (m,), float32 (m, C, H, W), booleans (m,): indices of the broken examples, their
        adversarial images, and whether these are still misclassified with pixels rounded to 8 bits.
    logits: (n, K) after the attack, NaN where it was not tried.
    distance: (n,) norms of the misclassified perturbations, in the ball or not; infinite where none is misclassified,
        NaN where not tried.
    first_broken: int64 (n,), of PGD: the first step at which an example broke at this or a smaller radius; UNBROKEN
        where none did, 0 where it is wrong without an attack.
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
    x_adv: Array = field(default_factory=_empty)
    eight_bit: Array = field(default_factory=_empty)
    logits: Array = field(default_factory=_empty)
    distance: Array = field(default_factory=_empty)
    first_broken: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
