"""Semi-supervised distributionally robust learning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import Count, Positive
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss
from atbench.methods.unlabelled import PoolMethod
from atbench.models import attack_mode


class Ssdrl(PoolMethod):
    """SSDRL (Najafi et al. 2019, NeurIPS, arXiv 1905.13021): a Wasserstein ball around labelled and unlabelled data.

    Inner (WRM, Sinha et al. 2018, ICLR, arXiv 1710.10571), for an image x and a class k, labelled or not:
    x'_k = argmax_x' φ_k(x'), φ_k(x') = CE(f(x'), k) − γ · ½‖x' − x‖₂², by steps of α/(γ·t) · ∇φ_k, t = 1, 2, …, from x
    itself. γ is the dual variable of the ball's radius ρ: no image has a radius of its own, the penalty and the box of
    pixels bound it. α is `attack.step_size`; above 2 the steps diverge.
    Outer: CE(f(x'_y), y), mean over labelled images, + Σ_k w_k · CE(f(u'_k), k), mean over unlabelled ones, with
    w = sg softmax_k(λ · φ_k(u'_k)). Its gradient is that of 1/λ · logsumexp_k(λ · φ_k): for λ < 0 a soft minimum, which
    trusts the classes that fit best; for λ > 0 a soft maximum; for λ = 0 all classes weigh alike. One class, `classes:
    1`, is Fast-SSDRL, adversarial self-training. The record's `cost` is the labelled images' mean of ½‖x' − x‖₂², the ρ
    whose dual variable γ is where the maxima are found.
    BatchNorm: one forward of the clean labelled images moves the running statistics and does nothing else; all others
    are in train mode without moving them, dropout active, the attack's as well (`attack.bn=batch`).
    Cost for K classes: (2k + 4) forward passes of the labelled images, K·(2k + 3) of the unlabelled ones, and one of
    these to order the classes if K is not all.

    Source: pfnet-research/ssdrl (attacks.py: wrm_attack, sswrm_loss; updater.py). There γ is in units of its inputs,
    u8/128 − 1, here in those of pixels in [0, 1]: γ · (255/128)², with which the paths are the same. The step size in
    its configurations, 10, is replaced by 1 in its scripts (0.5 on SVHN), which gave the figures.
    Known weaknesses: not a method for an L∞ ball, and no AutoAttack figure is known; γ depends on the data's scale, and
    a small one leaves the maximisation without a bound but the box.

    Args:
        gamma: γ, in units of [0, 1] pixels.
        lam: λ.
        classes: number of classes that an unlabelled image is tried with, likeliest first for λ < 0, last for λ ≥ 0;
            null: all.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        gamma: Positive = 0.4,
        lam: float = -1.0,
        classes: Count | None = None,
    ) -> None:
        super().__init__(model, attack)
        if not math.isfinite(lam):
            why, fix = "weighs no class or one alone", "use classes=1 for the likeliest class, or a large number"
            raise ConfigError("method.lam", lam, why, fix)
        self.gamma, self.lam, self.classes = gamma, lam, classes
        self.all_classes = 0

    def setup(self, data: TrainData) -> None:
        super().setup(data)
        self.all_classes = len(data.source.classes)

    @property
    def tried(self) -> int:
        """K, the number of classes that an unlabelled image is tried with."""
        return min(self.classes or self.all_classes, self.all_classes)

    def perturb(self, batch: Batch) -> Batch:
        labelled = batch.with_adv(self._maximise(batch.x, batch.y))
        if (extra := batch.extra) is None:
            return labelled
        candidates = self._candidates(extra.x)
        pool_adv = torch.stack([self._maximise(extra.x, k) for k in candidates])
        return labelled.with_adv(pool_adv=pool_adv, candidates=candidates)

    def _maximise(self, x: Tensor, y: Tensor) -> Tensor:
        """argmax_x' φ_y(x')."""
        objective = RobustSurrogate(self.model, y, x, self.gamma)
        return self.run_attack(objective, x, step_size=self.attack.step_size / self.gamma)

    @torch.no_grad()
    def _candidates(self, x: Tensor) -> Tensor:
        """(K, B): the classes to try, the first K in the order of the logits."""
        if self.tried == self.all_classes:
            return torch.arange(self.tried, device=x.device)[:, None].expand(-1, len(x))
        with attack_mode(self, self.attack.bn):
            logits = self.model(x)
        return logits.argsort(dim=1, descending=self.lam < 0)[:, : self.tried].T

    def loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            self.model(batch.x)  # moves the running statistics
        with attack_mode(self, "batch", freeze=False):
            logits = self.model(batch.x_adv)
            labelled = self.risk(logits, batch.y).mean()
            terms = {"labelled": labelled.detach(), "cost": transport_cost(batch.x_adv, batch.x).mean()}
            if batch.extra is None:
                return Loss(labelled, terms, logits)
            unlabelled = self._soft_minimum(batch, batch.extra.x).mean()
        return Loss(labelled + unlabelled, {**terms, "unlabelled": unlabelled.detach()}, logits)

    def _soft_minimum(self, batch: Batch, x: Tensor) -> Tensor:
        """Σ_k w_k · CE(f(u'_k), k) of each unlabelled image, (B,)."""
        pairs = list(zip(batch.aux["pool_adv"], batch.aux["candidates"], strict=True))
        risks = torch.stack([self.risk(self.model(x_adv), k) for x_adv, k in pairs])
        costs = torch.stack([transport_cost(x_adv, x) for x_adv, _ in pairs])
        weights = (self.lam * (risks.detach() - self.gamma * costs)).softmax(dim=0)
        return (weights * risks).sum(dim=0)

    def forward_cost(self, steps: int) -> float:
        ordering = 1 if self.tried < self.all_classes else 0
        return (1 - self.share) * (2 * steps + 4) + self.share * (ordering + self.tried * (2 * steps + 3))


class RobustSurrogate(Objective):
    """φ(x') = CE(f(x'), y) − γ · c(x', x) per example (Sinha et al. 2018, eq. 2)."""

    def __init__(self, network: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, gamma: float) -> None:
        super().__init__(network, cross_entropy, y)
        self.x, self.gamma = x, gamma

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        value, logits = super().__call__(x_adv, rows, step)
        x = self.x if rows is None else self.x[rows]
        return value - self.gamma * transport_cost(x_adv, x), logits


def transport_cost(x_adv: Tensor, x: Tensor) -> Tensor:
    """c(x', x) = ½‖x' − x‖₂² of each example, (B,)."""
    return (x_adv - x).square().flatten(1).sum(dim=1) / 2
