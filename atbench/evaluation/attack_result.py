"""What one attack of an evaluation did, example by example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One attack over one split.

    name: `pgd-20`, `fgsm`, `cw_linf`, `square`, ...
    knowledge: `gradient`, `features`, `queries`, `transfer` or `noise`, as `Attack.knowledge`.
    tried, broken: (n,) booleans on the CPU; `broken` is a subset of `tried`. An attack on survivors tried only those.
    seconds, forwards, gradients: what it cost; passes are counted in single images.
    """

    name: str
    knowledge: str
    tried: Tensor
    broken: Tensor
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0
