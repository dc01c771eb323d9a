"""Confidence-calibrated adversarial training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, confidence
from atbench.config.ranges import Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method

TINY = 1e-12  # in place of a radius of 0: no perturbation is no share of it


class Ccat(Method):
    """CCAT (Stutz et al. 2020, ICML, arXiv 1910.06259): the farther an adversarial image is from x, the less the
    network is to believe in any class, so that it can be rejected by its confidence.

    (1 − f)·CE(f(x), y) over one part of the batch + f·CE(f(x'), t) over the other,
    t = (1 − γ)·onehot(y) + γ/K,  γ = 1 − (1 − min(1, ‖x' − x‖/ε))^ρ, in the norm of the attack.
    Inner: max_{k≠y} p_k(x') from one of three starts, drawn for each example: Gaussian noise, a Gaussian direction of
    random length, x itself. Steps follow a running mean of steepest directions, those that lower the objective are
    taken back (`attack.backtrack`), the best point counts. δ and γ are constants. Every second row of the joint batch
    is attacked, one forward holds all rows. Since f is the attacked share too, the loss is the mean over the rows. An
    odd batch attacks its smaller half. Cost: f·(2k + 1) + 3 forward passes a batch.

    Paper and code (davidstutz/confidence-calibrated-adversarial-training, common/train, experiments/config/common.py):
    the code attacks the second half of the batch, and weighs it by f and the clean half by 1 − f, which is the formula
    at f = 1/2 only; it draws one start a batch. Its objective is the probability, here its logarithm, with the same
    steps. Its `examples/` differ from `experiments/`, which made the published models: cross-entropy in the attack,
    other starts and rates. `experiments/` is the default. `attack.start` is not used.
    Known weaknesses: without rejection it has next to no robust accuracy, by design: its robust accuracy by AutoAttack
    or PGD (near 0, from memory) says little, and so does a robust error with rejection beside other methods' error
    without. `eval=reject` has both. From memory, CIFAR-10, thresholded robust error at 99 % TPR, of CCAT and of PGD-AT:
    68.4 and 62.7 % in L∞ at 0.03, 52.2 and 73.6 % in L2, 58.8 and 72.0 % in L1, 23.0 and 66.4 % in L0.

    Args:
        rho: ρ, how soon confidence is to fall; 0 leaves every label as it is, ∞ makes any perturbation uniform.
        share: f, the part of the batch that is attacked.
    """

    requires_hard_labels = True

    def __init__(self, model: nn.Module, attack: GradientAttack, rho: float = 10.0, share: Share = 0.5) -> None:
        super().__init__(model, attack)
        if not rho >= 0:  # no `NotNegative`: it may be infinite
            raise ConfigError("method.rho", rho, "would raise confidence with distance", "use 0 or more")
        self.rho, self.share = rho, share

    def perturb(self, batch: Batch) -> Batch:
        rows = self.subset_mask(batch, self.share)
        # Drawn for all rows, so that an example's start is the same however processes share the attacked ones.
        start = self._start(batch.x)[rows]
        x_adv = batch.x.clone()
        x_adv[rows] = self.run_attack(Objective(self.model, confidence, batch.y[rows]), batch.x[rows], start=start)
        return batch.with_adv(x_adv)

    def _start(self, x: Tensor) -> Tensor:
        """x + δ in ball and box: δ Gaussian with σ = ε/(2 ln D) for D pixels, a Gaussian direction of the length
        ε·U(0, 1) in the attack's norm, or 0, each for a third of the examples.
        """
        eps, ball, rng = self.attack.eps, self.attack.ball, self.rng("start")
        gaussian = eps / (2 * math.log(x[0].numel())) * rng.normal(x)
        direction = rng.normal(x)  # in L∞ most of its pixels move far less than the one that gives it its length
        direction = direction / ball.norm(direction).clamp_min(TINY).view(-1, *[1] * (x.ndim - 1))
        length, choice = ((rng.uniform(x[:, :1, :1, :1]) + 1) / 2 for _ in range(2))
        delta = torch.where(3 * choice < 1, gaussian, torch.where(3 * choice < 2, eps * length * direction, 0.0))
        return ball.project(x, x + delta, eps)

    def uniform(self, batch: Batch) -> Tensor:
        """γ, (B,): the share of the uniform distribution in each target; 0 where nothing was done to the image."""
        distance = self.attack.ball.norm(batch.x_adv - batch.x) / max(self.attack.eps, TINY)
        return 1 - (1 - distance.clamp(max=1)) ** self.rho

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        uniform = self.uniform(batch)
        one_hot = F.one_hot(batch.y, logits.shape[1]).to(logits.dtype)
        mixed = uniform.to(logits.dtype)[:, None]
        total = self.risk(logits, (1 - mixed) * one_hot + mixed / logits.shape[1]).mean()
        terms = {"ce": total.detach(), "uniform": uniform.mean()}
        return Loss(total, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return self.share * (2 * steps + 1) + 3
