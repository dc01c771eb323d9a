"""What attacks made of several searches share: who is still unbroken, and the best try of each example so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import REPACK, GradientAttack, State
from atbench.attacks.base import Target
from atbench.attacks.losses import Objective, margin


@dataclass(frozen=True)
class AttackStage:
    """A part of a search with one objective and one step size. `objective` is asked for the examples at `rows`."""

    objective: Callable[[Tensor], Objective]
    steps: int
    step_size: float


def always(objective: Objective) -> Callable[[Tensor], Objective]:
    """For a first leg, which has the very examples that the objective was made for."""
    return lambda rows: objective


class RobustTracker:
    """The examples of a batch over any number of searches in one ball.

    x_adv: (B, C, H, W), the first misclassified image seen of an example, else the one of the largest margin.
    broken: (B,) booleans.

    `rows` are positions in the batch throughout.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        self.target, self.x, self.y = target, x, y
        self.x_adv = x.clone()
        self.gap = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def rows(self) -> Tensor:
        """Those that nothing has broken yet."""
        return (~self.broken).nonzero().squeeze(1)

    def see(self, rows: Tensor, x_adv: Tensor, logits: Tensor) -> Tensor:
        """Take note of images of the ball and their logits; says which of the rows are broken by now."""
        y, gap = self.y[rows], margin(logits, self.y[rows]).to(self.gap.dtype)
        found = logits.argmax(dim=1) != y
        better = ~self.broken[rows] & (found | (gap > self.gap[rows]))
        wide = better.view(-1, *[1] * (x_adv.ndim - 1))
        self.x_adv[rows] = torch.where(wide, x_adv, self.x_adv[rows])
        self.gap[rows] = torch.where(better, gap, self.gap[rows])
        self.broken[rows] = self.broken[rows] | found
        return self.broken[rows]

    def judge(self, rows: Tensor, x_adv: Tensor) -> Tensor:
        """Look at images without a gradient, and return their logits: searches do not look at their last point."""
        with torch.no_grad():
            logits = self.target.logits(x_adv)
        self.see(rows, x_adv, logits)
        return logits

    def thin(self, rows: Tensor, x_adv: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Both without what is broken, once that is more than a share of them."""
        alive = ~self.broken[rows]
        if int(alive.sum()) >= (1 - share) * len(rows):
            return rows, x_adv
        return rows[alive], x_adv[alive]

    def walk(
        self, search: GradientAttack, legs: Iterable[AttackStage], rows: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One search after the other from where the last one ended, `start` first; the last point is looked at too.

        `search` keeps its last point. Returns the rows that are still unbroken and the logits of their last points.
        """
        x_adv = start
        for leg in legs:
            if leg.steps == 0:
                continue
            x_adv = self._leg(search, leg, rows, x_adv)
            rows, x_adv = self.thin(rows, x_adv, REPACK)
            if len(rows) == 0:
                return rows, x_adv.new_zeros(0)
        logits = self.judge(rows, x_adv)
        alive = ~self.broken[rows]
        return rows[alive], logits[alive]

    def _leg(self, search: GradientAttack, leg: AttackStage, rows: Tensor, start: Tensor) -> Tensor:
        def stop(state: State) -> Tensor:
            return self.see(rows[state.rows], state.x_adv, state.outputs)

        return search(
            leg.objective(rows), self.x[rows], start=start, step_size=leg.step_size, steps=leg.steps, stop=stop
        )
