"""Standard training."""

from __future__ import annotations

from atbench.data import Batch
from atbench.methods.base import FixedSteps, Loss, Method


class Standard(Method):
    """Clean cross-entropy: min_θ CE(f(x), y). No attack; the ceiling of clean accuracy and the floor of robustness.

    Source: the reference point of every paper; settings of locuslab/robust_overfitting with `--attack none`.
    """

    def perturb(self, batch: Batch) -> Batch:
        return batch.with_adv(batch.x)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # no attack

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {}, logits)

    def forward_cost(self, steps: int) -> float:
        return 3
