"""Restarts and targets: one try after another, each on the examples that none before it broke.

A robust accuracy is the worst case over the tries, example by example, never their mean (Carlini et al. 2019, arXiv
1902.06705, sec. 5.2). So an example that is broken costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack, State
from atbench.attacks.losses import Objective


@dataclass(frozen=True)
class Attempt:
    """What one try came to: images (b, C, H, W), the objective there (b,), and which are misclassified (b,)."""

    x_adv: Tensor
    value: Tensor
    broken: Tensor


def run_restarts(x: Tensor, tries: Iterable[Callable[[Tensor], Attempt]]) -> Tensor:
    """One image for each x: that of the try that broke it, else of the try that got the highest value.

    Each try is handed the positions (b,) of the examples that are still right, and answers for them in that order.
    """
    result = x.clone()
    best = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    alive = torch.arange(len(x), device=x.device)
    for attempt in tries:
        if len(alive) == 0:
            break
        got = attempt(alive)
        better = got.broken | (got.value > best[alive])
        result[alive[better]] = got.x_adv[better]
        best[alive] = torch.maximum(best[alive], got.value)
        alive = alive[~got.broken]
    return result


def climb(search: GradientAttack, objective: Objective, y: Tensor, x: Tensor, begin: Tensor) -> Attempt:
    """One ascent from `begin`, judged by the outputs that the objective returns.

    With `return_point="first"` every point of the path is judged on the way, and the first misclassified one is the
    answer. With `return_point="last"` the final point alone is, which takes a forward pass of its own.
    """
    value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    labels = y

    def judge(state: State) -> Tensor:
        nonlocal labels
        if len(labels) != len(state.rows):  # examples were dropped, and rows never come back
            labels = y[state.rows]
        found: Tensor = state.outputs.argmax(dim=1) != labels
        broken[state.rows] |= found
        if state.step == search.steps:
            value[state.rows] = state.value.to(x.dtype)
        return found

    if search.return_point == "first":
        return Attempt(search(objective, x, start=begin, stop=judge), value, broken)
    x_adv = search(objective, x, start=begin)
    with torch.no_grad():
        reached, outputs = objective(x_adv, None, search.steps)
    return Attempt(x_adv, reached.to(x.dtype), outputs.argmax(dim=1) != y)
