"""Geometry-aware instance-reweighted adversarial training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State
from atbench.attacks.ascent.loop import Stop
from atbench.config.ranges import Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method


class Gairat(Method):
    """GAIRAT (Zhang et al. 2021, ICLR, arXiv 2010.01736): mean_i w_i · CE(f(x'_i), y_i), more weight near the boundary.

    κ_i counts the points of PGD before each of its K steps, the start included, at which example i is still classified
    right: 0 for one that is always wrong, K for one that is never fooled. Points after the last step do not count.
    w_i ∝ (1 + tanh(λ + 5·(h − κ_i) / h)) / 2 with h = ⌊K/2⌋, divided by the mean over the joint batch; no gradient.
    Before the share `begin` of training w = 1: PGD-AT to the bit, as with λ = ∞. Inner: PGD on cross-entropy.
    Cost: (2k + 3) forward passes a batch; κ comes from the attack's own.

    Paper and code (zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training, GAIRAT.py, GAIR.py): the paper's
    1 − 2κ/K is the code's (h − κ)/h for an even K only; here the code's. Its schedules of λ other than `fixed` and its
    other weight functions (sigmoid, discrete) are left out. It selects by PGD-20 on the test images.
    Known weaknesses: the weights hide from PGD what they give up. Reported, WRN-32-10: clean 85.75 %, PGD-20 57.81 %;
    of the last checkpoint 53.76 %. The authors concede that this does not hold under AutoAttack (issue #1 of the
    repository); others measured 33 to 40 % (from memory). RobustBench's 59.64 % is GAIR-RST, another loss with 500K
    images more. A batch of which nothing is ever fooled has weights of 1.

    Args:
        lam: λ; lower is steeper. Infinity is PGD-AT.
        begin: share of training from which weights count.
    """

    takes_micro_batches = False
    requires_hard_labels = True

    def __init__(
        self, model: torch.nn.Module, attack: GradientAttack, lam: float = -1.0, begin: Share = 59 / 120
    ) -> None:
        super().__init__(model, attack)
        if not lam > -math.inf:  # no range: it may be infinite
            raise ConfigError("method.lam", lam, "makes every weight 0/0", "use a number, or .inf for PGD-AT")
        if attack.steps < 2:
            why = "the weights count steps, and ⌊K/2⌋ of a single one is 0"
            raise ConfigError("attack.steps", attack.steps, why, "use 2 or more")
        self.lam, self.begin = lam, begin

    def perturb(self, batch: Batch) -> Batch:
        kappa, stop = torch.zeros_like(batch.y), self.stop_rule(batch.y)
        finished = torch.zeros_like(batch.y, dtype=torch.bool)

        def count_right(state: State) -> Tensor:
            rows = state.rows
            if state.step < self.attack.steps:
                kappa[rows] += (state.outputs.argmax(dim=1) == batch.y[rows]) & ~finished[rows]
            finished[rows] |= stop(state)
            return finished[rows]

        objective = Objective(self.model, self.attack_risk, batch.y)
        x_adv = self.run_attack(objective, batch.x, stop=count_right)
        return batch.with_adv(x_adv, kappa=kappa, weights=self._weights(kappa.to(batch.x.dtype)))

    def stop_rule(self, y: Tensor) -> Stop:
        """Which examples leave the attack early, for labels y (B,): none."""
        return lambda state: torch.zeros_like(state.rows, dtype=torch.bool)

    def _weights(self, kappa: Tensor) -> Tensor:
        """w, (B,), of mean 1 over the joint batch."""
        if self.clock.fraction < self.begin:
            return torch.ones_like(kappa)
        half = self.attack.steps // 2
        log_w = F.logsigmoid(2 * (self.lam + 5 * (half - kappa) / half))  # (1 + tanh z)/2 = sigmoid(2z)
        joint = self.gather(log_w)
        return (log_w - joint.max()).exp() / (joint - joint.max()).exp().mean()

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        total = (batch.aux["weights"] * self.risk(logits, batch.y)).mean()
        return Loss(total, {"kappa": batch.aux["kappa"].float().mean()}, logits)

    def forward_cost(self, steps: int) -> float | None:
        return 2 * steps + 3
