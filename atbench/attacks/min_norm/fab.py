"""FAB, the Fast Adaptive Boundary attack, and FAB-T, which targets one class after the other.

Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML,
arXiv 1907.02044, alg. 1; the targeted form and its 9 targets are those of AutoAttack (arXiv 2003.01690, sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atbench.attacks.base import Attack, Target
from atbench.attacks.min_norm.base import TINY, NearestAdversarial, nearest_boundary, others, wide
from atbench.attacks.min_norm.fab_projection import to_hyperplane
from atbench.config.ranges import AnyCount, Count, Positive, Share
from atbench.runs.seeding import ExampleDraws


@dataclass(eq=False, repr=False)
class FAB(Attack):
    """Steps from boundary to boundary, each linearised where the last step ended, and biased towards `x`.

    With f = z_t − z_y and w = ∇f at x^i, π the linearised boundary f + ⟨w, · − x^i⟩ = 0 that is nearest to x^i,
    b^i the point drawn back, and d(u) the least change in the norm that takes u onto π within the box (to_hyperplane):

        b^i     = x + beta · (x^i − x)  if x^i is misclassified,  x^i otherwise
        α       = min( ‖d(b^i)‖ / (‖d(b^i)‖ + ‖d(x)‖), alpha_max )
        x^{i+1} = clip( (1 − α) · (b^i + eta · d(b^i)) + α · (x + eta · d(x)) )

    The paper linearises at b^i, which takes a forward pass beside the one that judges x^i. Nearly every iterate is
    misclassified, so that is half again the cost. Here π is linearised at x^i, which lies nearer to the boundary than
    b^i does: the median distances found are the same to 1 % in every norm, and the pass is saved.

    Args:
        steps: iterations of a run; each costs one forward and K − 1 backward passes.
        restarts: runs; those after the first begin at a random point, at distance eps / 2 from `x`. Only examples that
            no run has broken within `eps` are run again.
        alpha_max: the greatest weight of the step from `x`. eta: overshoot beyond the boundary. beta: the share of the
            way that is kept when going on from a misclassified point.

    Returns the nearest misclassified image, `x` where none was found. `eps` decides who is run again and how far away,
    nothing else: distances are those of a full search only where they exceed it.
    """

    minimal: ClassVar[bool] = True

    steps: AnyCount = 100
    restarts: Count = 1
    alpha_max: Share = 0.1
    eta: Positive = 1.05
    beta: Share = 0.9

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        nearest = NearestAdversarial(self.ball, x)
        self._runs(target, nearest, y, None, rng)
        return nearest.image

    def _runs(
        self, target: Target, nearest: NearestAdversarial, y: Tensor, aim: Tensor | None, rng: ExampleDraws
    ) -> None:
        """All restarts, each on what is not broken yet. `aim` (B,) names the class to reach; None: the nearest."""
        for restart in range(self.restarts):
            rows = (nearest.distance > self.eps).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            start = nearest.x[rows]
            if restart > 0:
                start = self._random_start(start, rng.take(rows).at("restart", restart))
            self._run(target, nearest, rows, y[rows], None if aim is None else aim[rows, None], start)

    def _random_start(self, x: Tensor, rng: ExampleDraws) -> Tensor:
        """A point at distance eps / 2 (those still robust are known to hold no nearer one), clipped to the box."""
        noise = rng.uniform(x) if self.norm == "linf" else rng.normal(x)
        return (x + wide(0.5 * self.eps / self.ball.norm(noise).clamp_min(TINY), x) * noise).clamp_(0, 1)

    def _run(
        self,
        target: Target,
        nearest: NearestAdversarial,
        rows: Tensor,
        y: Tensor,
        classes: Tensor | None,
        point: Tensor,
    ) -> None:
        x, p = nearest.x[rows], self.ball.p
        for step in range(self.steps + 1):
            # The last point is judged, and nothing follows from it.
            with torch.set_grad_enabled(step < self.steps):
                point = point.detach().requires_grad_(step < self.steps)
                logits = target.logits(point)
            wrong = logits.detach().argmax(dim=1) != y
            nearest.offer(point.detach(), wrong, rows)
            if step < self.steps:
                rivals = others(logits.detach(), y, logits.shape[1] - 1) if classes is None else classes
                gap, normal = nearest_boundary(point, logits, y, rivals, p)
                point = self._towards(x, point.detach(), wrong, gap, normal)

    def _towards(self, x: Tensor, point: Tensor, wrong: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """x^{i+1}, from the boundary gap + ⟨normal, · − point⟩ = 0."""
        back = torch.where(wide(wrong, x), x + self.beta * (point - x), point)
        origin, base, w = x.flatten(1), back.flatten(1), normal.flatten(1)
        points = torch.cat([base, origin])
        need = torch.cat([-gap, -gap]) - (torch.cat([w, w]) * (points - point.flatten(1).repeat(2, 1))).sum(dim=1)
        moves = to_hyperplane(points, torch.cat([w, w]), need, self.ball.p)
        lengths = moves.norm(p=self.ball.p, dim=1).clamp_min(1e-8)
        near, far = lengths.chunk(2)
        alpha = (near / (near + far)).clamp_max(self.alpha_max)[:, None]
        ahead, biased = (points + self.eta * moves).chunk(2)
        return ((1 - alpha) * ahead + alpha * biased).clamp_(0, 1).view_as(x)


@dataclass(eq=False, repr=False)
class FABT(FAB):
    """FAB-T: a run of FAB with t fixed for each of the `targets` classes whose logits at `x` are the highest but y's.

    Targets run in the order of their logits, each on the examples that none before it has broken within `eps`;
    `restarts` are per target. An iteration costs one forward and one backward pass, however many classes there are.
    At most K − 1 targets exist.
    """

    targets: Count = 9

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        nearest = NearestAdversarial(self.ball, x)
        with torch.no_grad():
            targets = others(target.logits(x), y, self.targets)
        for number, t in enumerate(targets.unbind(1)):
            self._runs(target, nearest, y, t, rng.at("target", number))
        return nearest.image
