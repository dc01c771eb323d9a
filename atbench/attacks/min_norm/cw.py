"""The L2 attack of Carlini & Wagner (2017, IEEE S&P, arXiv 1608.04644, sec. V-A and VI-A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.ascent.loop import REPACK
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import margin
from atbench.attacks.min_norm.base import NearestAdversarial
from atbench.config.ranges import AnyCount, Count, Positive
from atbench.runs.seeding import ExampleDraws


@dataclass(eq=False, repr=False)
class CarliniL2(Attack):
    """Squared distance plus c times the margin, with a binary search for each example's c.

        min_v  ‖x'(v) − x‖₂² + c · max( z_y − max_{k≠y} z_k, 0 ),    x'(v) = (tanh(v) + 1) / 2

    by Adam from v = atanh(2x − 1). A c that led to a misclassified image is an upper bound, one that did not a lower
    one. As long as there is no upper bound c grows tenfold; then it is halved between them.

    Args:
        steps: of Adam for each c; one forward and one backward pass each.
        searches: number of values of c.
        lr: Adam's learning rate, in the units of v.
        first_c: the first value.

    An example whose objective has not fallen by a ten-thousandth over a tenth of the steps (25 at least) is done with
    this c: "abort early" of carlini/nn_robust_attacks, l2_attack.py, there for the batch as a whole, here for each
    example, so that its answer does not depend on the others.

    Returns the nearest misclassified image of all iterates, `x` where there is none.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    #: Black and white pixels have no finite v: images are drawn this much towards grey first (l2_attack.py).
    INSIDE = 0.999999
    CHECKS, PROGRESS = 10, 0.9999
    #: Steps between two checks at least: Adam's first steps move every pixel alike and raise the objective.
    LEAST = 25
    BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # Kingma & Ba 2015, the defaults

    steps: AnyCount = 1000
    searches: Count = 9
    lr: Positive = 0.01
    first_c: Positive = 0.001

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        nearest = NearestAdversarial(self.ball, x)
        c = torch.full((len(x),), self.first_c, dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            success = self._descend(target, nearest, y, c)
            low, high = torch.where(success, low, c), torch.where(success, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return nearest.image

    def _descend(self, target: Target, nearest: NearestAdversarial, y: Tensor, c: Tensor) -> Tensor:
        """Minimise for one `c` (B,). Returns (B,) booleans: where an iterate was misclassified."""
        success = torch.zeros_like(y, dtype=torch.bool)
        rows, x = torch.arange(len(y), device=y.device), nearest.x
        v = torch.atanh((2 * x - 1) * self.INSIDE)
        first, second = torch.zeros_like(v), torch.zeros_like(v)
        before, live = torch.full_like(c, torch.inf), torch.ones_like(success)
        every = max(self.LEAST, self.steps // self.CHECKS)
        for step in range(1, self.steps + 1):
            v = v.detach().requires_grad_()
            value, x_adv, wrong = self._value(target, v, x, y[rows], c[rows])
            grad = torch.autograd.grad(value.sum(), v)[0]
            # Finished examples are not updated: how long they stay in the batch depends on the others.
            wrong &= live
            nearest.offer(x_adv, wrong, rows)
            success[rows] |= wrong
            first = self.BETA1 * first + (1 - self.BETA1) * grad
            second = self.BETA2 * second + (1 - self.BETA2) * grad.square()
            scale = (second / (1 - self.BETA2**step)).sqrt() + self.ADAM_EPS
            v = v.detach() - self.lr / (1 - self.BETA1**step) * first / scale
            if step % every == 0:
                live = live & (value.detach() <= self.PROGRESS * before)
                before = value.detach()
                count = int(live.sum())
                if count == 0:
                    break
                if count <= (1 - REPACK) * len(live):
                    rows, x, v, first, second = rows[live], x[live], v[live], first[live], second[live]
                    before, live = before[live], live[live]
        return success

    def _value(self, target: Target, v: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The objective (b,) with its graph, the images x'(v), and which of them are misclassified."""
        with torch.enable_grad():
            x_adv = (torch.tanh(v) + 1) / 2
            logits = target.logits(x_adv)
            value = (x_adv - x).square().flatten(1).sum(dim=1) + c * (-margin(logits, y)).relu()
        return value, x_adv.detach(), logits.detach().argmax(dim=1) != y
