"""Instance adaptive adversarial training."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method, eps_spread
from atbench.models import attack_mode


class Iaat(Method):
    """IAAT (Balaji et al. 2019, arXiv 1910.08051): CE(f(x'_i), y_i), every example with a radius ε_i of its own.

    At a visit of example i, with e = ε_i: the candidate is e + γ if PGD of radius e + γ fails to fool f, else e if PGD
    of radius e fails, else e − γ; it is 0 where the clean prediction is wrong, and never negative;
    ε_i ← β·candidate + (1 − β)·e. During warm-up ε_i ← ε where the clean prediction is right, 0 elsewhere.
    x'_i comes from a last PGD at the new ε_i. Steps are max(ε_i / (0.5 k), min_step), for a small ε_i longer than the
    ball: it is a corner then. There is no upper cap.
    Cost: (6k + 6) forward passes a batch, (2k + 4) during warm-up. With `attack.bn=eval`, where no example sees
    another, it is less: candidates are tried only where the clean prediction is right, e only where e + γ does not
    hold, and no ball of radius 0 is searched.

    Paper and code: the rule is that of yogeshbalaji/Instance_Adaptive_Adversarial_Training (trainer_adaptive.py), whose
    line for eval mode is commented out: it attacks in train mode (`attack.bn=train` in the YAML), so that three attacks
    a batch move the running statistics. It does not clip the random start to legal pixels; here it is clipped. The
    paper's ImageNet settings were not verified.
    Known weaknesses: under augmentation ε_i is an average over views; clean accuracy is bought with robustness at ε.
    Not on RobustBench; the survey's 59.28 % is ImageNet under targeted PGD (from memory).

    Args:
        gamma: γ, how far ε_i is tried up and down, in units of the attack's ε.
        min_step: least step size, in the same units.
        beta: β, weight of the candidate in the moving average.
        warmup: share of training with the attack's own ε.
    """

    requires_hard_labels = True
    eps: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        gamma: NotNegative,
        min_step: NotNegative,
        beta: Share = 0.1,
        warmup: Share = 10 / 110,
    ) -> None:
        super().__init__(model, attack)
        self.gamma, self.min_step, self.beta, self.warmup = gamma, min_step, beta, warmup

    def setup(self, data: TrainData) -> None:
        self.register_buffer("eps", torch.zeros(len(data.train), dtype=data.dtype, device=data.device))

    @property
    def _warm(self) -> bool:
        return self.clock.fraction < self.warmup

    @property
    def _picks(self) -> bool:
        """Whether a search of some rows is that of the batch: it sees and draws nothing of the others, and keeps to its
        ball.
        """
        return self.attack.bn == "eval" and self.attack.noise == 0 and self.attack.project

    def perturb(self, batch: Batch) -> Batch:
        eps = self._updated(batch)
        x_adv, rows = self._search(batch, eps, "search", torch.ones_like(eps, dtype=torch.bool))
        return batch.with_adv(batch.x.index_put((rows,), x_adv), eps=eps)

    def _updated(self, batch: Batch) -> Tensor:
        """ε_i after this visit, (B,); written by `after_update`."""
        old, right = self.eps[batch.index], self._right(batch.x, batch.y)
        if self._warm:
            return torch.full_like(old, self.attack.eps) * right
        above = old + self.gamma
        if self._picks:
            holds_above = self._holds(batch, above, "above", right)
            holds = self._holds(batch, old, "at", right & ~holds_above)
        else:  # in this order: in train mode running statistics remember it
            (at, _), (beyond, _) = (self._search(batch, e, name, right) for e, name in ((old, "at"), (above, "above")))
            holds, holds_above = self._right(at, batch.y), self._right(beyond, batch.y)
        candidate = torch.where(holds_above, above, torch.where(holds, old, old - self.gamma))
        return self.beta * (candidate * right).clamp_min(0) + (1 - self.beta) * old

    def _holds(self, batch: Batch, eps: Tensor, stream: str, needed: Tensor) -> Tensor:
        """Whether PGD of radius `eps` fails to fool f, (B,); True where it is not searched."""
        x_adv, rows = self._search(batch, eps, stream, needed)
        holds = torch.ones_like(needed)
        return holds.index_put((rows,), self._right(x_adv, batch.y[rows])) if len(rows) else holds

    def _search(self, batch: Batch, eps: Tensor, stream: str, needed: Tensor) -> tuple[Tensor, Tensor]:
        """The adversarial images of the rows that are searched, and these rows (b,): all, or those that are `needed`
        (B,) and whose ball is more than x.
        """
        rows = torch.arange(len(batch), device=eps.device)
        step_size = (eps / (0.5 * self.attack.steps)).clamp_min(self.min_step)
        if not self._picks:
            objective = Objective(self.model, self.attack_risk, batch.y)
            return self.run_attack(objective, batch.x, eps=eps, step_size=step_size, stream=stream), rows
        start = self.attack.begin(batch.x, eps, self.rng(stream))  # of the whole batch: one row, one random number
        rows = rows[needed & (eps > 0)]  # CUDA waits here for their number: three times a batch, once in warm-up
        x, y, start, eps, step_size = (part[rows] for part in (batch.x, batch.y, start, eps, step_size))
        if len(rows) == 0:
            return x, rows
        objective = Objective(self.model, self.attack_risk, y)
        return self.run_attack(objective, x, start=start, eps=eps, step_size=step_size), rows

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            return torch.eq(self.model(x).argmax(dim=1), y)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # steps of a share of each radius

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {}, logits)

    def after_update(self, batch: Batch) -> None:
        self.eps[self.gather(batch.index)] = self.gather(batch.aux["eps"])

    def epoch_figures(self) -> dict[str, float]:
        return eps_spread(self.eps)

    def forward_cost(self, steps: int) -> float | None:
        if self._picks:
            return None
        return 2 * steps + 4 if self._warm else 6 * steps + 6
