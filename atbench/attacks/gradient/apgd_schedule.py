"""APGD's step rules and step sizes: one pair for L∞ and L2, another for L1.

Both agree with the authors' code (fra31/auto-attack, autoattack/autopgd_base.py) up to rounding, because published
AutoAttack figures were made with it. Where the code differs from the papers, the code is followed, with a note.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from atbench.attacks.ascent.loop import Ascent, State, Stepper, where
from atbench.attacks.norms.lp_ball import Ball, Radius


@dataclass
class _Rows:
    """Tensors with one entry an example; step sizes η are (b, 1, 1, 1)."""

    size: Tensor

    def take(self, live: Tensor) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[live] for field in fields(self)})


@dataclass
class _Progress(_Rows):
    """`older` is x^{t−1}; the others are what the conditions of a checkpoint need."""

    older: Tensor
    previous: Tensor
    rises: Tensor
    halved: Tensor
    at_check: Tensor


class APGDSteps(Stepper):
    """L∞ and L2 (Croce & Hein 2020, arXiv 2003.01690, alg. 1):

        u       = Π( x^t + η · d(∇ f(x^t)) )
        x^{t+1} = Π( x^t + 0.75 · (u − x^t) + 0.25 · (x^t − x^{t−1}) )

    η starts at 2ε. At a checkpoint it is halved, and the search goes back to its best point, if since the last one

        1. the objective rose in at most a share ρ of the steps, or
        2. η was not halved there and the best value has not changed.

    Checkpoints come after 22 % of the steps, then at intervals that shrink by 3 % down to 6 % (sec. 3.2).
    """

    FIRST = 2.0  # η⁰ / ε, sec. 3.2
    INERTIA = 0.25  # 1 − α, sec. 3.1
    adapts = True
    memory: _Progress | None = None

    def __init__(self, ball: Ball, eps: float, steps: int, rho: float) -> None:
        self.ball, self.eps, self.rho, self.checkpoints = ball, eps, rho, checkpoints(steps)

    def adapt(self, state: State, ascent: Ascent) -> State:
        assert ascent.best is not None
        self.project = None if self.memory is None else ascent.project
        state, self.memory = self._review(state, ascent.best)
        self.sizes = self.memory.size
        return state

    def step(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        assert self.memory is not None
        c, ahead = self.INERTIA, self.ball.ascend(x_adv, grad, sizes)
        if self.project is not None:  # from the second step on
            # x + (1 − c)(u − x) + c(x − x_older) = (1 − c)u + 2c·x − c·x_older
            ahead = self.project(ahead).mul_(1 - c).add_(x_adv, alpha=2 * c).sub_(self.memory.older, alpha=c)
        self.memory = replace(self.memory, older=x_adv)
        return ahead

    def take(self, live: Tensor) -> None:
        self.memory = self.memory and self.memory.take(live)

    def _review(self, state: State, best: State) -> tuple[State, _Progress]:
        """Count rises; at a checkpoint, halve step sizes and send those examples back to their best points."""
        value, memory, zero = state.value, self.memory, torch.zeros_like(state.value)
        if memory is None:
            # The authors' code compares the value after the first step with 0; the paper, with the start's.
            size, halved = _sizes(state.x_adv, self.FIRST * self.eps), torch.ones_like(zero, dtype=torch.bool)
            return state, _Progress(size, state.x_adv, zero, zero, halved, best.value)
        rises = memory.rises + (value > memory.previous)
        if state.step not in self.checkpoints:
            return state, replace(memory, previous=value, rises=rises)
        stuck = rises <= self.rho * self.checkpoints[state.step]
        idle = ~memory.halved & (memory.at_check >= best.value)
        halve = stuck | idle
        size = torch.where(halve.view(memory.size.shape), memory.size / 2, memory.size)
        return where(~halve, state, best), _Progress(size, memory.older, value, zero, halve, best.value)


def _sizes(x: Tensor, size: float) -> Tensor:
    return torch.full_like(x[:, :1, :1, :1], size)


def checkpoints(steps: int) -> dict[int, int]:
    """Each checkpoint's step number, and how many steps lie between it and the one before."""
    interval, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    intervals, step = {}, interval
    while step <= steps:
        intervals[step] = interval
        interval = max(interval - shrink, least)
        step += interval
    return intervals


@dataclass
class _Sparsity(_Rows):
    share: Tensor
    moved: Tensor


class SparseAPGDSteps(Stepper):
    """L1 (Croce & Hein 2021, "Mind the box", arXiv 2103.01208, alg. 1): a step moves the share s of the pixels with the
    largest |gradient|, each by η / (number moved), and has no momentum.

    Every 4 % of the steps, with m = ‖x_best − x‖₀ of d pixels: s = m / (1.5·d); where m fell below 95 % of what it was,
    η = ε and the search goes on from x_best; elsewhere η ← max(η / 1.5, ε / 10). At the start m is the start's own.
    """

    FIRST = 1.0  # η⁰ / ε
    SHRINK = 1.5
    LEAST = 0.1  # η / ε
    FEWER = 0.95
    INTERVAL = 0.04
    # What is nearer to x than this is rounding. The authors' code counts it as a pixel moved, so that in L1 it steps on
    # more pixels than its formula says.
    MOVED = 1e-6
    adapts = True
    memory: _Sparsity | None = None

    def __init__(self, eps: float, steps: int) -> None:
        self.eps, self.interval = eps, max(int(self.INTERVAL * steps), 1)

    def adapt(self, state: State, ascent: Ascent) -> State:
        assert ascent.best is not None
        state, self.memory = self._review(state, ascent.best, ascent.x)
        self.sizes = self.memory.size
        return state

    def step(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        assert self.memory is not None
        magnitude = grad.abs().flatten(1)
        d = magnitude.shape[1]
        first = ((1 - self.memory.share) * d).clamp_(0, d - 1).long()
        least = magnitude.sort(dim=1).values.gather(1, first[:, None])
        direction = grad.sign() * (magnitude >= least).view_as(grad)
        count = direction.abs().flatten(1).sum(dim=1).clamp_min_(1).view(-1, *[1] * (grad.ndim - 1))
        return x_adv + sizes / count * direction

    def take(self, live: Tensor) -> None:
        self.memory = self.memory and self.memory.take(live)

    def _review(self, state: State, best: State, x: Tensor) -> tuple[State, _Sparsity]:
        """Choose sparsity and step sizes anew; send examples whose perturbation became sparser to their best points."""
        memory = self.memory
        if memory is not None and state.step % self.interval:
            return state, memory
        moved = ((best.x_adv - x).abs() > self.MOVED).flatten(1).sum(dim=1).to(x.dtype)
        share = moved / x[0].numel() / self.SHRINK
        if memory is None:
            return state, _Sparsity(_sizes(x, self.FIRST * self.eps), share, moved)
        fewer = moved / memory.moved < self.FEWER
        shorter = (memory.size / self.SHRINK).clamp_min_(self.LEAST * self.eps)
        size = torch.where(fewer.view(shorter.shape), self.eps, shorter)
        return where(~fewer, state, best), _Sparsity(size, share, moved)
