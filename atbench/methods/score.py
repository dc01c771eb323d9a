"""SCORE: adversarial training by squared distances of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method

FORMS = ("trades", "pgd_at")


class Score(Method):
    """SCORE (Pang et al. 2022, ICML, arXiv 2202.10103): mean ‖p(x) − t‖² + β · mean relu(‖p(x') − p(x)‖² − c).

    A distance in place of the KL divergence, so that what is best is equivariant near x and need not be constant.
    p = softmax(f), t the label as shares of classes, ‖·‖² summed over classes. Three losses by settings:
    `form: trades` (above), the gradient through both p; `form: pgd_at`: ‖p(x') − t‖²; and either as
    relu(total − C) of each example with `total_clip` C, the authors' form without generated data, C = q²·K/(K − 1)
    for the label 1 − q that is good enough.
    Inner: maximise ‖p(x') − p(x)‖² with p(x) fixed, or ‖p(x') − y‖² with unsmoothed y, from a uniform start, normalised
    by batch statistics that are not tracked. Outer: clean and adversarial images in two forwards.
    Cost: (2k + 7) forward passes a batch, (2k + 3) for `form: pgd_at`.

    Paper and code: P2333/SCORE, gowal21uncovering/utils/trades.py (`trades_loss_LSE`) with generated data, and
    without_DDPM/train_cifar.py without: there TRADES attacks in eval mode from 0.001·N(0, 1) in the box
    (`attack.bn=eval attack.start=gaussian attack.clip_start=true`) and forwards adversarial images before clean ones,
    and PGD-AT attacks in train mode. Under CutMix the code attacks the distance to the mixed label in place of p(x),
    here p(x); t is the mixed label in both. Its smoothing puts 1 − s on the label and s/(K − 1) on each other class:
    `train.label_smoothing` is torch's, (1 − s) on the label and s/K on all, the same label for s = s_code·K/(K − 1).
    Known weaknesses: where p is near 0 or 1, as at a wrong and sure prediction, the gradient of the square vanishes
    with p (that of cross-entropy does not), and it is small early on: a longer warm-up or half the rate. Logits stay
    small, so that PGD on cross-entropy flatters it. Robust accuracy by AutoAttack: 61.04 % (RobustBench, WRN-28-10 with
    a million generated images).

    Args:
        beta: β.
        clip: c, below which a squared distance of x' to x costs nothing.
        total_clip: C, below which an example costs nothing; 0 for none.
        form: `trades` or `pgd_at`, which has neither β nor c.
        adversarial_first: the order of the update's two forwards, which running statistics remember.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 4.0,
        clip: NotNegative = 0.0,
        total_clip: NotNegative = 0.0,
        form: str = "trades",
        adversarial_first: bool = False,
    ) -> None:
        super().__init__(model, attack)
        if form not in FORMS:
            raise ConfigError("method.form", form, "there is no such choice", f"use one of {', '.join(FORMS)}")
        self.beta, self.clip, self.total_clip, self.form = beta, clip, total_clip, form
        self.adversarial_first = adversarial_first

    def perturb(self, batch: Batch) -> Batch:
        reference = self.probabilities(batch.x) if self.form == "trades" else batch.y
        return batch.with_adv(self.run_attack(Objective(self.model, squared_distance, reference), batch.x))

    def loss(self, batch: Batch) -> Loss:
        if self.form == "pgd_at":
            logits = self.model(batch.x_adv)
            each = self._to_label(logits, batch.y)
            terms: dict[str, Tensor] = {}
        else:
            if self.adversarial_first:
                logits, clean = self.model(batch.x_adv), self.model(batch.x)
            else:
                clean, logits = self.model(batch.x), self.model(batch.x_adv)
            natural = self._to_label(clean, batch.y)
            robust = (squared_distance(logits, clean.softmax(dim=1)) - self.clip).relu()
            each = natural + self.beta * robust
            terms = {"square": natural.mean().detach(), "drift": robust.mean().detach()}
        if self.total_clip:
            each = (each - self.total_clip).relu()
        return Loss(each.mean(), terms, logits)

    def _to_label(self, logits: Tensor, y: Tensor) -> Tensor:
        """‖p − t‖² per example, t the label with the run's smoothing as torch means it."""
        s, target = self.risk.label_smoothing, shares_of(y, logits)
        return squared_distance(logits, (1 - s) * target + s / logits.shape[1])

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (7 if self.form == "trades" else 3)


def squared_distance(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_k (softmax(z)_k − t_k)² per example, (B,); `target` shares of classes (B, K) or class indices (B,)."""
    return (logits.softmax(dim=1) - shares_of(target, logits)).square().sum(dim=1)


def shares_of(y: Tensor, logits: Tensor) -> Tensor:
    """Labels as shares of classes (B, K), which soft labels are already."""
    return torch.zeros_like(logits).scatter_(1, y[:, None], 1.0) if y.ndim == 1 else y
