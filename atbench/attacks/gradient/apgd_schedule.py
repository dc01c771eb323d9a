"""How APGD steps: one pace for L∞ and L2, another for L1.

Both agree with the authors' code (fra31/auto-attack, autoattack/autopgd_base.py) up to rounding, because published
AutoAttack figures were made with it. Where it differs from the papers it is followed, and the place says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.attacks.gradient.apgd_ascent import APGDState, Rows, StepSizeSchedule
from atbench.attacks.norms.lp_ball import Ball, Linf


@dataclass
class _Progress(Rows):
    previous: Tensor
    rises: Tensor
    halved: Tensor
    at_check: Tensor


class Momentum(StepSizeSchedule):
    """L∞ and L2 (Croce & Hein 2020, arXiv 2003.01690, alg. 1):

        u       = Π( x^t + η · d(∇ f(x^t)) )
        x^{t+1} = Π( x^t + 0.75 · (u − x^t) + 0.25 · (x^t − x^{t−1}) )

    η starts at 2ε. At a checkpoint it is halved, and the search goes back to its best point, if since the last one

        1. the objective rose in at most a share ρ of the steps, or
        2. η was not halved there and the best value has not changed.

    Checkpoints come after 22 % of the steps, then at intervals that shrink by 3 % down to 6 % (sec. 3.2).
    """

    FIRST = 2.0  # sec. 3.2
    INERTIA = 0.25  # 1 − α, sec. 3.1
    memory: _Progress

    def __init__(self, ball: Ball, eps: float, steps: int, rho: float) -> None:
        super().__init__(ball, eps, steps)
        self.rho, self.checkpoints = rho, checkpoints(steps)

    def begin(self, climb: APGDState) -> None:
        zero = torch.zeros_like(climb.value)
        # The authors' code compares the value after the first step with 0; the paper, with the start's.
        self.memory = _Progress(zero, zero, torch.ones_like(climb.broken), climb.best_value)
        self._confine(climb.x)

    def take(self, climb: APGDState, keep: Tensor) -> APGDState:
        climb = super().take(climb, keep)
        self._confine(climb.x)
        return climb

    def _confine(self, x: Tensor) -> None:
        """Settle the projection for these images: for L∞ its bounds are worth computing once."""
        self.project: Callable[[Tensor], Tensor] = lambda z: self.ball.project(x, z, self.eps)
        if isinstance(self.ball, Linf):
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            self.project = lambda z: torch.clamp(z, low, high)

    def ahead(self, climb: APGDState, step: int) -> Tensor:
        ahead = self.project(climb.x_adv + climb.size * self.ball.steepest(climb.grad))
        if step == 1:
            return ahead
        # x + (1 − c)(u − x) + c(x − x_older) = (1 − c)u + 2c·x − c·x_older
        c = self.INERTIA
        return self.project(ahead.mul_(1 - c).add_(climb.x_adv, alpha=2 * c).sub_(climb.older, alpha=c))

    def review(self, climb: APGDState, step: int) -> None:
        memory = self.memory
        memory.rises = memory.rises + (climb.value > memory.previous)
        memory.previous = climb.value
        if step not in self.checkpoints:
            return
        stuck = memory.rises <= self.rho * self.checkpoints[step]
        idle = ~memory.halved & (memory.at_check >= climb.best_value)
        halve = stuck | idle
        self.memory = _Progress(climb.value, torch.zeros_like(memory.rises), halve, climb.best_value)
        climb.size = torch.where(halve.view(climb.size.shape), climb.size / 2, climb.size)
        climb.back_to_best(halve)


def checkpoints(steps: int) -> dict[int, int]:
    """Each checkpoint's step number, and how many steps lie between it and the one before."""
    interval, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, step = {}, interval
    while step <= steps:
        found[step] = interval
        interval = max(interval - shrink, least)
        step += interval
    return found


@dataclass
class _Sparsity(Rows):
    share: Tensor
    moved: Tensor


class Sparse(StepSizeSchedule):
    """L1 (Croce & Hein 2021, "Mind the box", arXiv 2103.01208, alg. 1): a step moves the share s of the pixels with the
    largest |gradient|, each by η / (number moved), and has no momentum.

    Every 4 % of the steps, with m = ‖x_best − x‖₀ of d pixels: s = m / (1.5·d); where m fell below 95 % of what it was,
    η = ε and the search goes on from x_best; elsewhere η ← max(η / 1.5, ε / 10). At the start m is the start's own.
    """

    FIRST = 1.0
    SHRINK = 1.5
    LEAST = 0.1  # η / ε
    FEWER = 0.95
    INTERVAL = 0.04
    # What is nearer to x than this is rounding. The authors' code counts it as a pixel moved, so that in L1 it steps on
    # more pixels than its formula says.
    MOVED = 1e-6
    memory: _Sparsity

    def begin(self, climb: APGDState) -> None:
        self.interval = max(int(self.INTERVAL * self.steps), 1)
        self.memory = self._sparsity(climb)

    def _sparsity(self, climb: APGDState) -> _Sparsity:
        moved = ((climb.best - climb.x).abs() > self.MOVED).flatten(1).sum(dim=1).to(climb.x.dtype)
        return _Sparsity(moved / climb.x[0].numel() / self.SHRINK, moved)

    def ahead(self, climb: APGDState, step: int) -> Tensor:
        memory = self.memory
        magnitude = climb.grad.abs().flatten(1)
        d = magnitude.shape[1]
        first = ((1 - memory.share) * d).clamp_(0, d - 1).long()
        least = magnitude.sort(dim=1).values.gather(1, first[:, None])
        direction = climb.grad.sign() * (magnitude >= least).view_as(climb.grad)
        count = direction.abs().flatten(1).sum(dim=1).clamp_min_(1).view(climb.size.shape)
        return self.ball.project(climb.x, climb.x_adv + climb.size / count * direction, self.eps)

    def review(self, climb: APGDState, step: int) -> None:
        if step % self.interval:
            return
        before, self.memory = self.memory, self._sparsity(climb)
        fewer = self.memory.moved / before.moved < self.FEWER
        shorter = (climb.size / self.SHRINK).clamp_min_(self.LEAST * self.eps)
        climb.size = torch.where(fewer.view(climb.size.shape), self.eps, shorter)
        climb.back_to_best(fewer)
