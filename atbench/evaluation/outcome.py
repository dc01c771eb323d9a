"""What an attack did to each example, as the evaluation judged it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The result of one attack on the n examples of an evaluation.

    tried, broken: booleans (n,), on the CPU; `broken` only where `tried`. An example that was wrong without an attack
        is in neither.
    knowledge: that of the attack (`Attack.knowledge`). `forwards`, `gradients`: images that were passed through the
        network, and those of them that a gradient was asked for.
    """

    name: str
    knowledge: str
    tried: Tensor
    broken: Tensor
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0
