"""What one attack of an evaluation did, example by example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One attack over one split.

    name: `pgd-20`, `fgsm`, `cw_linf`, `square`, ...
    access: `gradient`, `features`, `queries`, `transfer` or `noise`, as `Attack.access`.
    tried, broken: (n,) booleans on the CPU; `broken` is a subset of `tried`. An attack on survivors tried only those.
    seconds, forwards, gradients: what it cost; passes are counted in single images.
    """

    name: str
    access: str
    tried: Tensor
    broken: Tensor
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0
