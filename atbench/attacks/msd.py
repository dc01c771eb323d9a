"""The search of MSD: one trajectory through a union of norm balls, each step the worst of the norms' steepest steps.

x^{t+1} = argmax { objective(z) : z = Π_{B_p(x, ε_p) ∩ [0,1]}( x^t + α_p · d_p(∇ objective(x^t)) ), p a norm }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atbench.attacks.ball import L1, ball, per_example
from atbench.attacks.objectives import Objective
from atbench.errors import ConfigError
from atbench.rng import Draws


class MultiSteepest:
    """Multi steepest descent (Maini et al. 2020, ICML, arXiv 1909.04068, alg. 1): ascent in several norms at once.

    The gradient at x' makes one candidate a norm, projected on that norm's ball and the box. Each example goes on from
    its candidate of highest objective (of equals the later norm's); returned is the best point of the whole way.

    Cost of k steps with n norms: k·(n + 2) passes, n looks at candidates and one gradient at the winners. To keep all
    candidates' graphs and go back from the winners would cost 2n a step: less for one norm, where it is done, as much
    for two, and more for three. And where BatchNorm takes its statistics from the batch, the winners are another batch
    than each norm's candidates.

    Paper and code: locuslab/robust_union (`msd_v0`) leaves out coordinates of an L1 step that are within the step of
    the box; here they go as far as they can, and the rest of the length is spent on the next (Croce & Hein 2021, Prop.
    2.2). It projects on the L1 ball and clips afterwards; here both at once (ibid., Prop. 2.1), which is nearer and
    keeps the ball. It does not count the start among the points that may be returned.

    Args:
        radii: ε of each norm, in the order in which ties are settled.
        step_sizes: α of each norm, the length of a step in that norm.
        steps: k.
        start: `zero`, or `uniform`: in the last norm's ball, scaled into the others (the code's option on MNIST).
        pixels: least and greatest number of pixels that share an L1 step; drawn at every step for the whole batch.
    """

    STARTS = ("zero", "uniform")

    def __init__(
        self,
        radii: Mapping[str, float],
        step_sizes: Mapping[str, float],
        steps: int,
        start: str = "zero",
        pixels: Sequence[float] = (5, 20),
    ) -> None:
        if start not in self.STARTS:
            fix = f"use one of {', '.join(self.STARTS)}"
            raise ConfigError("attack.start", start, "a union of balls has no such start", fix)
        if len(pixels) != 2 or pixels[0] > pixels[1]:
            fix = "write [least, greatest]"
            raise ConfigError("method.pixels", list(pixels), "is no range of numbers of pixels", fix)
        self.balls = {norm: ball(norm) for norm in radii}
        self.radii, self.step_sizes, self.steps, self.start, self.pixels = radii, step_sizes, steps, start, pixels

    def __call__(
        self, objective: Objective, x: Tensor, *, start: Tensor | None = None, rng: Draws | None = None
    ) -> Tensor:
        """x_adv (B, C, H, W), detached, every row in one of the balls and in the box. `start` is a point to begin at;
        `rng` is needed for a random start, and for L1 unless the number of pixels is fixed.
        """
        x = x.detach()
        point = self.begin(x, rng) if start is None else start.detach()
        projects = {norm: its.projector(x, self.radii[norm]) for norm, its in self.balls.items()}
        lengths = {norm: per_example(self.step_sizes[norm], x) for norm in self.balls}
        best = _nearest(point, [project(point) for project in projects.values()])
        if self.steps == 0:
            return best
        value, grad = _look(objective, point, 0, gradient=True)
        most, alone = value, len(self.balls) == 1
        for step, sparsity in enumerate(self._sparsities(x, rng), start=1):
            balls = {norm: L1(sparsity) if norm == "l1" else its for norm, its in self.balls.items()}
            ahead = [projects[norm](its.ascend(point, grad, lengths[norm])) for norm, its in balls.items()]
            more = step < self.steps
            point, value, grad = _worst(objective, ahead, step, gradient=more and alone)
            better = value > most
            best, most = _where(better, point, best), torch.where(better, value, most)
            if more and not alone:
                _, grad = _look(objective, point, step, gradient=True)
        return best

    def begin(self, x: Tensor, rng: Draws | None) -> Tensor:
        """The starting point, in all balls and in the box."""
        if self.start == "zero":
            return x.clone()
        assert rng is not None, "a random start needs `rng`"
        *others, last = self.balls
        delta = self.balls[last].sample(x, self.radii[last], rng)
        for norm in others:
            length = self.balls[norm].norm(delta).clamp_min(1e-12)
            delta = delta * per_example((self.radii[norm] / length).clamp(max=1), x)
        return (x + delta).clamp_(0, 1)

    def _sparsities(self, x: Tensor, rng: Draws | None) -> list[float]:
        """For each step, the share of pixels that an L1 step moves. All drawn before the first pass is under way: a
        number that the host needs would make it wait for the device at every step.
        """
        size = x[0].numel()
        least, greatest = (min(max(1, round(count)), size) for count in self.pixels)
        if "l1" not in self.balls or least == greatest:
            return [least / size] * self.steps
        assert rng is not None, "a random number of pixels needs `rng`"
        return [min(int(rng.scalar(least, greatest + 1)), greatest) / size for _ in range(self.steps)]


def _look(objective: Objective, point: Tensor, step: int, gradient: bool) -> tuple[Tensor, Tensor]:
    """Values (B,) of the objective at a point, and the gradient to the point (the point itself if none is asked)."""
    with torch.enable_grad() if gradient else torch.no_grad():
        leaf = point.detach().requires_grad_(gradient)
        value, _ = objective(leaf, None, step)
        grad = torch.autograd.grad(value.sum(), leaf)[0] if gradient else point
    return value.detach(), grad


def _worst(objective: Objective, points: Sequence[Tensor], step: int, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Per example the point of highest objective, the later one of equals; its value; the last point's gradient."""
    worst, most = points[0], points[0].new_zeros(0)
    for number, point in enumerate(points):
        value, grad = _look(objective, point, step, gradient)
        if number == 0:
            most = value
            continue
        wins = value >= most
        worst, most = _where(wins, point, worst), torch.where(wins, value, most)
    return worst, most, grad


def _nearest(point: Tensor, legal: Sequence[Tensor]) -> Tensor:
    """Per example the projection that is closest to the point: the point itself if it lies in any of the balls."""
    found = legal[0]
    for other in legal[1:]:
        distance = (found - point).flatten(1).norm(dim=1)
        found = _where((other - point).flatten(1).norm(dim=1) < distance, other, found)
    return found


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` in the rows named, `no` in the others."""
    return torch.where(rows.view(-1, *[1] * (yes.ndim - 1)), yes, no)
