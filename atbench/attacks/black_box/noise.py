"""Random perturbations: a lower bound for every gradient attack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import Candidates
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import margin
from atbench.attacks.restarts import run_restarts
from atbench.config.ranges import AnyCount, NotNegative
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws


class Noise(Attack):
    """`steps` independent points of the ball; the first misclassified one, else the one of the largest margin.

    A network that noise breaks where gradients do not masks its gradients (Carlini et al. 2019, arXiv 1902.06705,
    sec. 4.3 and 5).

    Args:
        steps: draws, and forward passes, per example that is still robust.
        start: `uniform` in the ball, or `corner`, a vertex x ± ε of the L∞ ball.

    Raises ConfigError for another start.
    """

    access = "noise"

    #: Values drawn per example at once. A fixed number of the image's size: numbers must not depend on the batch.
    AT_ONCE = 2**16

    def __init__(self, norm: str, eps: NotNegative, steps: AnyCount, start: str = "uniform") -> None:
        super().__init__(norm, eps, steps)
        if start not in ("uniform", "corner") or (start == "corner" and norm != "linf"):
            raise ConfigError(
                "attack.start",
                start,
                f"start must be uniform{' or corner' if norm == 'linf' else ''} for {norm}",
                "use uniform",
            )
        self.draw = GradientAttack(norm, self.eps, steps=0, step_size=0.0, start=start).begin

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        at_once = max(1, self.AT_ONCE // x[0].numel())
        blocks = (
            _RepeatedDraws(rng.at("block", first), min(at_once, self.steps - first))
            for first in range(0, self.steps, at_once)
        )
        return run_restarts(x, (partial(self._restart, target, x, y, block) for block in blocks))

    def _restart(self, target: Target, x: Tensor, y: Tensor, rng: _RepeatedDraws, rows: Tensor) -> Candidates:
        count, repeated = rng.count, rng.take(rows)
        x_adv = self.draw(x[rows].repeat_interleave(count, dim=0), self.eps, repeated)
        # No forward is larger than the batch that was handed in.
        logits = torch.cat([target.logits(part) for part in x_adv.split(len(x))])
        labels = y[rows].repeat_interleave(count)
        wrong = (logits.argmax(dim=1) != labels).view(-1, count)
        value = margin(logits, labels).view(-1, count)
        pick = torch.where(wrong, torch.inf, value).argmax(dim=1, keepdim=True)
        rows = torch.arange(len(rows), device=x.device)
        chosen = x_adv.view(-1, count, *x.shape[1:])[rows, pick.squeeze(1)]
        return Candidates(chosen, value.gather(1, pick).squeeze(1), wrong.any(dim=1))


class _RepeatedDraws(ExampleDraws):
    """`count` draws per example in one call, for images (b · count, C, H, W) with those of an example in a row."""

    def __init__(self, rng: ExampleDraws, count: int) -> None:
        super().__init__(rng.seed, *rng.stream, index=rng.index)
        self.count = count

    def take(self, rows: Tensor) -> _RepeatedDraws:
        return _RepeatedDraws(super().take(rows), self.count)

    def _rows(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        return super()._rows(like.unflatten(0, (-1, self.count)), draw).flatten(0, 1)
