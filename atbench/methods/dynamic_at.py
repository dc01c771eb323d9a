"""Dynamic adversarial training."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State
from atbench.attacks.ascent.loop import Stop
from atbench.attacks.norms.lp_ball import flat_norm
from atbench.config.ranges import NotNegative, Share, SomeShare
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method

ORIGINS = ("clean", "start")
#: q with 1/p + 1/q = 1.
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class DynamicAt(Method):
    """Dynamic adversarial training (Wang et al. 2019, ICML, arXiv 2112.08304): CE(f(x'), y) on PGD that is stopped
    where it has converged as far as the epoch asks.

    FOSC (first-order stationary condition), g = ∇CE(f(x'), y) of the example: c(x') = max_{‖u − x‖_p ≤ ε} ⟨u − x', g⟩ =
    ε·‖g‖_q − ⟨x' − x, g⟩, q = 1 for L∞: what the linearised loss could still gain; never negative, 0 where nothing.
    Inner: PGD on cross-entropy from a uniform start that is not clipped to the box; every example takes one step, and
    stops at the first iterate after it with c ≤ c_t. c_t = max(c_max − c_max · t / T', 0) in epoch t = 0, 1, ...
    Outer: mean CE(f(x'), y); with `weighted_from`, mean w · CE(f(x'), y), w = −log(p_y(x') + 1e-12) in eval mode and
    without gradient. Cost: at most (2k + 3) forward passes a batch, (2k + 4) with weights.

    Paper and code: YisenWang/dynamic_adv_training (pgd_attack.py, train_models.py) differs from the paper (from
    memory), which is the default here, in two places. (1) It weights from the second epoch on (`weighted_from: 1/120`).
    (2) It measures from the noisy start x⁰ in place of x (`origin: start`). c is then negative at some points where the
    search has not converged, so that examples stop too early, and it does not become full PGD-10 in the last epochs,
    where c_t = 0; with `origin: clean` it does. Which of the two gave the published figures is not known. The code's
    weighted mean is divided by the number of weights that are not exactly 0, here by B.
    Known weaknesses: a weighted loss is about the square of cross-entropy, and wants a small learning rate (0.01
    there): at digits' 0.05 a network does not learn. c_max is in nats of the loss and does not follow ε. Not on
    RobustBench; clean 85.03 %, PGD-20 48.70 % on a WRN (FAT's README).

    Args:
        c_max: FOSC at which examples stop in the first epoch.
        decay: T' as a share of training, in which c_t falls to 0.
        origin: `clean`, x, or `start`, x⁰.
        weighted_from: share of training after which the loss is weighted; 1 for never.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        c_max: NotNegative = 0.5,
        decay: SomeShare = 100 / 120,
        origin: str = "clean",
        weighted_from: Share = 1.0,
    ) -> None:
        super().__init__(model, attack)
        if origin not in ORIGINS:
            raise ConfigError("method.origin", origin, "there is no such choice", f"use one of {', '.join(ORIGINS)}")
        self.c_max, self.decay, self.origin, self.weighted_from = c_max, decay, origin, weighted_from

    @property
    def threshold(self) -> float:
        """c_t of this epoch."""
        return max(self.c_max - self.c_max * self.clock.epoch / (self.decay * self.clock.epochs), 0.0)

    def perturb(self, batch: Batch) -> Batch:
        objective = Objective(self.model, self.attack_risk, batch.y)
        x_adv = self.run_attack(objective, batch.x, stop=self._converged(batch.x))
        if self.clock.fraction < self.weighted_from:
            return batch.with_adv(x_adv)
        p = self.probabilities(x_adv).gather(1, batch.y[:, None]).squeeze(1)
        return batch.with_adv(x_adv, weight=-(p + 1e-12).log())

    def _converged(self, x: Tensor) -> Stop:
        """The stop rule c(x') ≤ c_t, after a first step that is everybody's."""
        origin = x

        def stop(state: State) -> Tensor:
            nonlocal origin
            assert state.grad is not None
            if state.step == 0:
                origin = state.x_adv if self.origin == "start" else x
                return torch.zeros_like(state.rows, dtype=torch.bool)
            delta = state.x_adv - origin[state.rows]
            return fosc(state.grad, delta, self.attack.eps, self.attack.norm) <= self.threshold

        return stop

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y)
        total = (batch.aux["weight"] * risk if "weight" in batch.aux else risk).mean()
        return Loss(total, {}, logits)

    def epoch_figures(self) -> dict[str, float]:
        return {"fosc_threshold": self.threshold}


def fosc(grad: Tensor, delta: Tensor, eps: float, norm: str = "linf") -> Tensor:
    """ε·‖g‖_q − ⟨δ, g⟩ per example, (B,), for a perturbation δ and the gradient g of each example's own loss."""
    return eps * flat_norm(grad, DUAL[norm]).flatten() - (grad * delta).flatten(1).sum(dim=1)
