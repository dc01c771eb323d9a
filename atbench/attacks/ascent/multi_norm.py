"""Multi steepest descent (MSD): ascent in a union of norm balls, each step the worst of the norms' steepest steps.

x^{t+1} = argmax { objective(z) : z = Π_{B_p(x, ε_p) ∩ [0,1]}( x^t + α_p · d_p(∇ objective(x^t)) ), p a norm }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import L1, SLIDE, Radius, ball, per_example
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws


class FrozenL1(L1):
    """The L1 ball as locuslab/robust_union steps in it (`l1_dir_topk`) and projects on it: on the ball, then the box.

    With k pixels to a step, those move by length/k whose |gradient| is at least the k-th largest, among those that are
    neither exactly 0 or 1 nor closer to the bound that they would move to than length/k.
    """

    def ascend(self, x_adv: Tensor, grad: Tensor, length: Radius) -> Tensor:
        flat, point = grad.flatten(1), x_adv.flatten(1)
        k = max(1, round(self.sparsity * flat.shape[1]))
        length = per_example(length, grad)
        pixel = (length.flatten(1) if length.ndim else length) / k
        stuck = (point <= 0) | (point >= 1) | ((flat < 0) & (point <= pixel)) | ((flat > 0) & (point >= 1 - pixel))
        free = flat.masked_fill(stuck, 0)
        least = free.abs().topk(k, dim=1).values[:, -1:]
        return (point + pixel * free.sign() * (free.abs() >= least)).view_as(x_adv)

    def project(self, x: Tensor, x_adv: Tensor, eps: Radius) -> Tensor:
        return (x + self.shrink(x_adv - x, eps)).clamp_(0, 1)


class MultiSteepest:
    """Multi steepest descent (Maini et al. 2020, ICML, arXiv 1909.04068, alg. 1): ascent in several norms at once.

    The gradient at x' makes one candidate a norm, projected on that norm's ball and the box. Each example goes on from
    its candidate of highest objective (of equals the later norm's); the best iterate is returned.

    Cost of k steps with n norms: k·(n + 2) passes, n evaluations of candidates and one gradient at the winners. To keep
    all candidates' graphs and go back from the winners would cost 2n a step: less for one norm, where it is done, as
    much for two, and more for three. And where BatchNorm takes its statistics from the batch, the winners are another
    batch than each norm's candidates.

    Paper and code: the figures were made with the L1 steps of locuslab/robust_union (`msd_v0`), `l1_step: code`
    (`FrozenL1`), which move no pixel that is exactly 0 or 1, inward or outward: L1 never attacks most of a digit.
    `steepest` goes as far as the box lets it, spends the rest of the length on the next pixel (Croce & Hein 2021, Prop.
    2.2), and projects on ball and box at once (ibid., Prop. 2.1). Where one image of a batch has left the L1 ball, the
    code's projection also stretches those inside until they touch it; that is not done here. It does not count the
    start among the points that may be returned.

    Args:
        radii: ε of each norm, in the order in which ties are settled.
        step_sizes: α of each norm, the length of a step in that norm.
        steps: k.
        start: `zero`, or `uniform`: in the last norm's ball, scaled into the others (the code's option on MNIST).
        pixels: least and greatest number of pixels that share an L1 step; drawn at every step for the whole batch.
        l1_step: `code` or `steepest`.
    """

    STARTS = ("zero", "uniform")
    L1_STEPS: Mapping[str, type[L1]] = {"code": FrozenL1, "steepest": L1}

    def __init__(
        self,
        radii: Mapping[str, float],
        step_sizes: Mapping[str, float],
        steps: int,
        start: str = "zero",
        pixels: Sequence[float] = (5, 20),
        l1_step: str = "steepest",
    ) -> None:
        if start not in self.STARTS:
            fix = f"use one of {', '.join(self.STARTS)}"
            raise ConfigError("attack.start", start, "a union of balls has no such start", fix)
        if l1_step not in self.L1_STEPS:
            fix = f"use {' or '.join(self.L1_STEPS)}"
            raise ConfigError("method.l1_step", l1_step, "there is no such choice", fix)
        if len(pixels) != 2 or pixels[0] > pixels[1]:
            fix = "write [least, greatest]"
            raise ConfigError("method.pixels", list(pixels), "is no range of numbers of pixels", fix)
        self.l1 = self.L1_STEPS[l1_step]
        self.balls = {norm: self.l1(SLIDE) if norm == "l1" else ball(norm) for norm in radii}
        self.radii, self.step_sizes, self.steps, self.start, self.pixels = radii, step_sizes, steps, start, pixels

    def __call__(
        self, objective: Objective, x: Tensor, *, start: Tensor | None = None, rng: Draws | None = None
    ) -> Tensor:
        """x_adv (B, C, H, W), detached, every row in one of the balls and in the box. `start` replaces the attack's
        own; `rng` is needed for a random start, and for L1 unless the number of pixels is fixed.
        """
        x = x.detach()
        point = self.begin(x, rng) if start is None else start.detach()
        projects = {norm: its.projector(x, self.radii[norm]) for norm, its in self.balls.items()}
        best = _nearest(point, [project(point) for project in projects.values()])
        if self.steps == 0:
            return best
        value, grad = _evaluate(objective, point, 0, gradient=True)
        most, alone = value, len(self.balls) == 1
        for step, sparsity in enumerate(self._sparsities(x, rng), start=1):
            balls = {norm: self.l1(sparsity) if norm == "l1" else its for norm, its in self.balls.items()}
            assert grad is not None
            ahead = [projects[norm](its.ascend(point, grad, self.step_sizes[norm])) for norm, its in balls.items()]
            more = step < self.steps
            point, value, grad = _worst(objective, ahead, step, gradient=more and alone)
            better = value > most
            best, most = _where(better, point, best), torch.where(better, value, most)
            if more and not alone:
                _, grad = _evaluate(objective, point, step, gradient=True)
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


def _evaluate(objective: Objective, x_adv: Tensor, step: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The objective (b,) and, if asked for, its gradient."""
    x_adv = x_adv.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        value, _ = objective(x_adv, None, step)
        grad = torch.autograd.grad(value.sum(), x_adv)[0] if gradient else None
    return value.detach(), grad


def _worst(
    objective: Objective, points: Sequence[Tensor], step: int, gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Per example the point of highest objective, the later one of equals; its value; the last point's gradient."""
    worst, most = points[0], points[0].new_zeros(0)
    for number, point in enumerate(points):
        value, grad = _evaluate(objective, point, step, gradient)
        if number == 0:
            most = value
            continue
        wins = value >= most
        worst, most = _where(wins, point, worst), torch.where(wins, value, most)
    return worst, most, grad


def _nearest(point: Tensor, legal: Sequence[Tensor]) -> Tensor:
    """Per example the projection that is closest to the point: the point itself if it lies in any of the balls."""
    nearest = legal[0]
    for other in legal[1:]:
        distance = (nearest - point).flatten(1).norm(dim=1)
        nearest = _where((other - point).flatten(1).norm(dim=1) < distance, other, nearest)
    return nearest


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` in the rows named, `no` in the others."""
    return torch.where(rows.view(-1, *[1] * (yes.ndim - 1)), yes, no)
