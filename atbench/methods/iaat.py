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
    Cost: (6k + 6) forward passes a batch, (2k + 4) during warm-up.

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

    def perturb(self, batch: Batch) -> Batch:
        eps = self._updated(batch)
        return batch.with_adv(self._search(batch, eps, "search"), eps=eps)

    def _updated(self, batch: Batch) -> Tensor:
        """ε_i after this visit, (B,); written by `after_update`."""
        old, right = self.eps[batch.index], self._right(batch.x, batch.y)
        if self._warm:
            return torch.full_like(old, self.attack.eps) * right
        # In this order: in train mode running statistics remember it.
        at, above = self._search(batch, old, "at"), self._search(batch, old + self.gamma, "above")
        holds, holds_above = self._right(at, batch.y), self._right(above, batch.y)
        candidate = torch.where(holds_above, old + self.gamma, torch.where(holds, old, old - self.gamma))
        return self.beta * (candidate * right).clamp_min(0) + (1 - self.beta) * old

    def _search(self, batch: Batch, eps: Tensor, stream: str) -> Tensor:
        step_size = (eps / (0.5 * self.attack.steps)).clamp_min(self.min_step)
        objective = Objective(self.model, self.attack_risk, batch.y)
        return self.run_attack(objective, batch.x, eps=eps, step_size=step_size, stream=stream)

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

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 4 if self._warm else 6 * steps + 6
