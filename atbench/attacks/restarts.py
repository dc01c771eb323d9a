"""Attacks made of several searches: the best candidate of each example, and which examples are still robust.

A robust accuracy is the worst case over restarts, targets and stages, example by example, never their mean (Carlini et
al. 2019, arXiv 1902.06705, sec. 5.2). So an example that is broken costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import REPACK, Candidates, State
from atbench.attacks.base import Target
from atbench.attacks.losses import Objective, margin


class BestCandidates:
    """The best candidate of each example so far.

    x_adv: (B, C, H, W), the first misclassified image of an example, else the one of the highest value.
    broken: (B,) booleans. `rows` are positions in the batch throughout.
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.x_adv = x, x.clone()
        self.value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def rows(self) -> Tensor:
        """Those that nothing has broken yet."""
        return (~self.broken).nonzero().squeeze(1)

    def restarts(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """(number, rows still robust) of each restart, until none is left."""
        for number in range(count):
            rows = self.rows()
            if len(rows) == 0:
                return
            yield number, rows

    def add(self, rows: Tensor, x_adv: Tensor, value: Tensor, wrong: Tensor) -> None:
        """Take note of one candidate for each row, its value and whether it is misclassified."""
        better = ~self.broken[rows] & (wrong | (value > self.value[rows]))
        wide = better.view(-1, *[1] * (x_adv.ndim - 1))
        self.x_adv[rows] = torch.where(wide, x_adv, self.x_adv[rows])
        self.value[rows] = torch.where(better, value, self.value[rows])
        self.broken[rows] = self.broken[rows] | wrong


def run_restarts(x: Tensor, restarts: Iterable[Callable[[Tensor], Candidates]]) -> Tensor:
    """One image for each x: that of the restart that broke it, else of the one that reached the highest value.

    Each restart is called with the positions (b,) of the examples that are still robust, and answers for them in that
    order; `done` are those that it broke.
    """
    best = BestCandidates(x)
    for restart in restarts:
        rows = best.rows()
        if len(rows) == 0:
            break
        candidates = restart(rows)
        best.add(rows, candidates.x_adv, candidates.value, candidates.done)
    return best.x_adv


def ascend(pgd: GradientAttack, objective: Objective, y: Tensor, x: Tensor, start: Tensor) -> Candidates:
    """One ascent from `start`; `done` are the misclassified, by the outputs that the objective returns.

    With `return_point="first"` every point of the path is judged, and the first misclassified one is the answer. With
    `return_point="last"` the final point alone is, which takes a forward pass of its own.
    """
    value, wrong = (
        torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device),
        torch.zeros_like(y, dtype=torch.bool),
    )

    def judge(state: State) -> Tensor:
        searched = ~wrong[state.rows]
        value[state.rows[searched]] = state.value[searched].to(x.dtype)
        wrong[state.rows] |= state.outputs.argmax(dim=1) != y[state.rows]
        return wrong[state.rows]

    x_adv = pgd(objective, x, start=start, stop=judge if pgd.return_point == "first" else None)
    if pgd.return_point == "last":
        with torch.no_grad():
            last, outputs = objective(x_adv, None, pgd.steps)
        judge(State(pgd.steps, torch.arange(len(x), device=x.device), x_adv, last, outputs, None))
    return Candidates(x_adv, value, wrong)


@dataclass(frozen=True)
class AttackStage:
    """A part of a search with one objective and one step size. `objective` is called with the examples' `rows`."""

    objective: Callable[[Tensor], Objective]
    steps: int
    step_size: float


def always(objective: Objective) -> Callable[[Tensor], Objective]:
    """For a first stage, which has the very examples that the objective was made for."""
    return lambda rows: objective


class RobustTracker(BestCandidates):
    """Best candidates by their margin, over any number of searches in one ball that judge every point by its logits."""

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        super().__init__(x)
        self.target, self.y = target, y

    def update(self, rows: Tensor, x_adv: Tensor, logits: Tensor) -> Tensor:
        """Take note of images of the ball and their logits; which of the rows are broken by now."""
        y = self.y[rows]
        self.add(rows, x_adv, margin(logits, y).to(self.value.dtype), logits.argmax(dim=1) != y)
        return self.broken[rows]

    def evaluate(self, rows: Tensor, x_adv: Tensor) -> Tensor:
        """Judge images without a gradient, and return their logits: searches do not evaluate their last point."""
        with torch.no_grad():
            logits = self.target.logits(x_adv)
        self.update(rows, x_adv, logits)
        return logits

    def drop_broken(self, rows: Tensor, x_adv: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Both without what is broken, once that is more than a share of them."""
        robust = ~self.broken[rows]
        if int(robust.sum()) >= (1 - share) * len(rows):
            return rows, x_adv
        return rows[robust], x_adv[robust]

    def run_stages(
        self, pgd: GradientAttack, stages: Iterable[AttackStage], rows: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One search after the other from where the last one ended, `start` first; the last point is evaluated too.

        `pgd` returns its last point. Returns the rows that are still robust and the logits of their last points.
        """
        x_adv = start
        for stage in stages:
            if stage.steps == 0:
                continue
            x_adv = self._run_stage(pgd, stage, rows, x_adv)
            rows, x_adv = self.drop_broken(rows, x_adv, REPACK)
            if len(rows) == 0:
                return rows, x_adv.new_zeros(0)
        logits = self.evaluate(rows, x_adv)
        robust = ~self.broken[rows]
        return rows[robust], logits[robust]

    def _run_stage(self, pgd: GradientAttack, stage: AttackStage, rows: Tensor, start: Tensor) -> Tensor:
        def stop(state: State) -> Tensor:
            return self.update(rows[state.rows], state.x_adv, state.outputs)

        objective, x = stage.objective(rows), self.x[rows]
        return pgd(objective, x, start=start, step_size=stage.step_size, steps=stage.steps, stop=stop)
