"""One ascent from one start, which keeps its best point and stops where an example is misclassified.

Where the next point lies and how step sizes change is a `StepSizeSchedule`: `pace.py` has those of APGD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import REPACK
from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import Ball


@dataclass
class Rows:
    """Tensors with one entry an example."""

    def take(self, keep: Tensor) -> Self:
        """The examples `keep` (a mask) alone."""
        return replace(self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@dataclass
class APGDState(Rows):
    """The examples still searched: their places `rows` in the batch, where they are, were a step ago (`older`) and were
    best, with objective values and gradients; step sizes are (b, 1, 1, 1).
    """

    rows: Tensor
    y: Tensor
    x: Tensor
    x_adv: Tensor
    older: Tensor
    value: Tensor
    grad: Tensor
    best: Tensor
    best_value: Tensor
    best_grad: Tensor
    size: Tensor
    broken: Tensor

    def back_to_best(self, which: Tensor) -> None:
        """Go on from the best point where `which` (b,) says so."""
        wide = which.view(self.size.shape)
        self.x_adv = torch.where(wide, self.best, self.x_adv)
        self.grad = torch.where(wide, self.best_grad, self.grad)


@dataclass(frozen=True)
class Outcome:
    """Of each example: whether it was `broken`; its first misclassified point, else its best; its best value."""

    broken: Tensor
    x_adv: Tensor
    value: Tensor

    def write(self, climb: APGDState, places: Tensor, x_adv: Tensor) -> None:
        """Put down `x_adv`, and the rest as it stands, for these places (positions or a mask) of the climb."""
        rows = climb.rows[places]
        self.x_adv[rows] = x_adv[places]
        self.broken[rows], self.value[rows] = climb.broken[places], climb.best_value[places]


class StepSizeSchedule(ABC):
    """Where the next step goes and when it becomes shorter. One object serves one run in the ball of radius `eps`."""

    FIRST: ClassVar[float]  # η⁰ / ε
    memory: Rows  # what is remembered between checkpoints

    def __init__(self, ball: Ball, eps: float, steps: int) -> None:
        self.ball, self.eps, self.steps = ball, eps, steps

    @abstractmethod
    def begin(self, climb: APGDState) -> None:
        """Look at the start."""

    @abstractmethod
    def ahead(self, climb: APGDState, step: int) -> Tensor:
        """The point that step number `step` (from 1) leads to."""

    @abstractmethod
    def review(self, climb: APGDState, step: int) -> None:
        """After every step: at a checkpoint, choose step sizes anew and send examples back to their best points."""

    def take(self, climb: APGDState, keep: Tensor) -> APGDState:
        """Drop all examples but `keep`, here and from the climb."""
        self.memory = self.memory.take(keep)
        return climb.take(keep)


def ascend(
    objective: Objective,
    y: Tensor,
    x: Tensor,
    start: Tensor,
    pace: StepSizeSchedule,
    eot_samples: int = 1,
    stop: bool = True,
) -> Outcome:
    """Climb `objective` around `x` from `start`, both (B, C, H, W), for `pace.steps` steps; y (B,).

    It costs a forward and a backward at the start and at every step, but no backward at the last, all `eot_samples`
    times: of a network that answers at random, values, gradients and logits are means. `stop=False` goes on from
    misclassified points: what is wanted are the best ones.
    """
    rows, none = torch.arange(len(x), device=x.device), torch.zeros_like(y, dtype=torch.bool)
    value, logits, grad = _look(objective, start, rows, eot_samples)
    size = torch.full_like(x[:, :1, :1, :1], pace.FIRST * pace.eps)
    climb = APGDState(rows, y, x, start, start, value, grad, start, value, grad, size, none)
    outcome = Outcome(none.clone(), torch.empty_like(x), torch.empty_like(value))
    pace.begin(climb)
    hits = _judge(climb, logits, outcome) if stop else 0
    for step in range(1, pace.steps + 1):
        if hits >= REPACK * len(climb.rows):
            left = ~climb.broken
            climb, hits = pace.take(climb, left), 0
            if not len(climb.rows):
                return outcome
        ahead = pace.ahead(climb, step)
        climb.older, climb.x_adv = climb.x_adv, ahead
        climb.value, logits, climb.grad = _look(objective, ahead, climb.rows, eot_samples, step < pace.steps)
        _remember(climb)
        hits += _judge(climb, logits, outcome) if stop else 0
        pace.review(climb, step)
    outcome.write(climb, ~climb.broken, climb.best)
    return outcome


def _look(
    objective: Objective, x_adv: Tensor, rows: Tensor, eot_samples: int, gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over `eot_samples` passes of the objective (b,), the logits (b, K) and the gradient (none: zeros)."""
    x_adv = x_adv.detach().requires_grad_(gradient)
    value: list[Tensor] = []
    logits: list[Tensor] = []
    grad: list[Tensor] = []
    for _ in range(eot_samples):
        with torch.set_grad_enabled(gradient):
            new, outputs = objective(x_adv, rows)
            grad += torch.autograd.grad(new.sum(), x_adv) if gradient else [torch.zeros_like(x_adv)]
        value.append(new.detach())
        logits.append(outputs.detach())
    return _mean(value), _mean(logits), _mean(grad)


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)


def _remember(climb: APGDState) -> None:
    """Make the present point the best one where its value is the largest so far."""
    better = climb.value > climb.best_value
    wide = better.view(climb.size.shape)
    climb.best_value = torch.where(better, climb.value, climb.best_value)
    climb.best = torch.where(wide, climb.x_adv, climb.best)
    climb.best_grad = torch.where(wide, climb.grad, climb.best_grad)


def _judge(climb: APGDState, logits: Tensor, outcome: Outcome) -> int:
    """Write down who is misclassified for the first time; how many."""
    new = ((logits.argmax(dim=1) != climb.y) & ~climb.broken).nonzero().squeeze(1)
    if len(new):
        climb.broken[new] = True
        outcome.write(climb, new, climb.x_adv)
    return len(new)
