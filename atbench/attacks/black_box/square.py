"""Square Attack: random search over windows of the image (Andriushchenko et al. 2020, ECCV, arXiv 1912.00049)."""

from __future__ import annotations

from bisect import bisect_left
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.base import Attack, Target
from atbench.attacks.black_box.square_norms import WINDOWS, Windows
from atbench.attacks.losses import margin
from atbench.attacks.restarts import BestCandidates
from atbench.config.ranges import AnyCount, Count, NotNegative, SomeShare
from atbench.runs.seeding import ExampleDraws


class Square(Attack):
    """Change a random window of the image, keep the change if the margin max_{k≠y} z_k − z_y grew, go on.

    A window covers the share p of the image: `p_init`, halved after the queries HALVINGS whatever `steps` is
    (AutoAttack's version; the paper stretches these numbers to the budget). What a window is filled with depends on
    the norm (`square_norms.py`). The search of an example ends when its margin is positive.

    Args:
        steps: queries per example and restart, the one of the first image included.
        p_init: share of the image that the first windows cover.
        restarts: independent searches, each on the examples that are still robust.
    """

    access: ClassVar[str] = "queries"
    HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # fra31/auto-attack, square.py
    #: Queries whose random numbers are drawn at once: (B, BLOCK, 2 to 8) of them are in memory.
    BLOCK = 250

    def __init__(
        self, norm: str, eps: NotNegative, steps: AnyCount = 5000, p_init: SomeShare = 0.8, restarts: Count = 1
    ) -> None:
        super().__init__(norm, eps, steps)
        self.p_init, self.restarts = p_init, restarts

    def share(self, query: int) -> float:
        """p at a query after the first image's, counted from 0."""
        return self.p_init / 2.0 ** bisect_left(self.HALVINGS, query)

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        best = BestCandidates(x)
        with torch.no_grad():
            for restart, rows in best.restarts(self.restarts):
                image, value = _Run(self, target, x[rows], y[rows], rng.take(rows).at("restart", restart)).result()
                best.add(rows, image, value, value > 0)
        return best.x_adv


class _Run:
    """One random search over one batch."""

    def __init__(self, attack: Square, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> None:
        self.attack, self.target, self.y, self.rng = attack, target, y, rng
        self.windows: Windows = WINDOWS[attack.norm](x, attack.eps)
        self.rows = torch.arange(len(x), device=x.device)  # the examples that are still searched
        self.image, self.value = x.clone(), torch.empty(len(x), dtype=x.dtype, device=x.device)

    def result(self) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and (B,): the first image of each example with a positive margin, else the best, and its
        margin.
        """
        windows, channels = self.windows, self.windows.x.shape[1]
        windows.start(self.rng.uniform(windows.x.new_empty(len(self.rows), windows.tiles())))
        value = margin(self.target.logits(windows.image), self.y)
        numbers = value.new_empty(len(value), 0, 0)
        wasted = 0
        for query in range(self.attack.steps - 1):
            done = value > 0
            # A finished example costs a pass with every query. To drop it costs a copy of the batch, less than a pass
            # of it: so it is dropped once the passes thrown away make one over the batch, whatever its share is.
            wasted += int(done.sum())
            if wasted >= len(done):
                wasted = 0
                value, numbers, done = self._drop(done, value, numbers)
                if len(value) == 0:
                    break
            if query % self.attack.BLOCK == 0:
                # A whole block each time: the queries of a small budget are the first ones of a larger.
                numbers = self.rng.uniform(value.new_empty(len(value), self.attack.BLOCK, windows.numbers + channels))
            windows.propose(numbers[:, query % self.attack.BLOCK], windows.side(self.attack.share(query)))
            proposed = margin(self.target.logits(windows.image), self.y)
            keep = (proposed > value) & ~done
            windows.settle(keep)
            value = torch.where(keep, proposed, value)
        self.image[self.rows], self.value[self.rows] = windows.image, value
        return self.image, self.value

    def _drop(self, done: Tensor, value: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write the finished examples into the result and drop them."""
        self.image[self.rows[done]], self.value[self.rows[done]] = self.windows.image[done], value[done]
        live = ~done
        self.windows.take(live)
        self.rows, self.y, self.rng = self.rows[live], self.y[live], self.rng.take(live)
        return value[live], numbers[live], done[live]
