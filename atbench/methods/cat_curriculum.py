"""Curriculum adversarial training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State
from atbench.config.ranges import AnyCount, Share
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Decision, FixedSteps, Keep, Loss, Method, Report, Restore

ADVANCES = ("validation", "training")


class CatCurriculum(Method):
    """CAT (Cai et al. 2018, IJCAI, arXiv 1805.04807): CE on batches that mix PGD of 0, 1, .. K steps; K grows.

    A joint batch of B is cut into K + 1 chunks of ⌊B / (K + 1)⌋, the last with the remainder. Chunk j is attacked with
    j steps of (2ε / j)·u_j, u_j ~ U(1, 10/j) once a chunk, from a random start; chunk 0 stays clean. One forward, mean
    CE. K starts at 0 and ends at `max_strength`. It advances
    - by validation: when the held-out accuracy under K steps has had no new best for `patience` epochs and the epoch's
      accuracy on the mixed batches is above `threshold`; weights and optimizer go back to the best epoch of the stage;
    - by training: as soon as the epoch's accuracy on the mixed batches is above `threshold`; nothing goes back.
    Validation is with u = 1, so that epochs compare, and on clean images for K = 0.
    Cost: about (K + 3) forward passes a batch: one search serves all chunks, and chunk j leaves it after step j.

    Paper and code: sunblaze-ucb/curriculum-adversarial-training-CAT (advtrain_all.py) attacks in train mode
    (`attack.bn=train` in the YAML), chunk by chunk; here batch statistics are those of all rows still searched. It does
    not bound K when it advances by validation; here K is bounded. u is not described in the paper (from memory).
    Left out: validation by the worst of all strengths so far; and the 16 grey levels at inference, for rounding has no
    gradient and so hides adversarial examples from PGD without removing them.
    Known weaknesses: with a step of 2ε or more strength 1 only picks corners. The survey's 69.27 % is PGD-7 on
    DenseNet-161; others found 46.06 % under PGD-20 on a WRN (Wang et al. 2019, in FAT's README). Not on RobustBench.

    Args:
        max_strength: the last K.
        advance: `validation` or `training`.
        patience: share of the run's epochs, rounded up to whole ones; at least one.
        threshold: accuracy on the mixed batches that an advance needs.
    """

    strength: Tensor
    best: Tensor
    stale: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        max_strength: AnyCount,
        advance: str = "validation",
        patience: Share = 10 / 300,
        threshold: Share = 0.9,
    ) -> None:
        super().__init__(model, attack)
        if advance not in ADVANCES:
            raise ConfigError("method.advance", advance, "there is no such choice", f"use one of {', '.join(ADVANCES)}")
        self.max_strength, self.advance = max_strength, advance
        self.patience, self.threshold = patience, threshold
        self.register_buffer("strength", torch.tensor(0))
        self.register_buffer("best", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("stale", torch.tensor(0))

    def setup(self, data: TrainData) -> None:
        rows = data.batch_size - data.extra_size
        if self.max_strength >= rows:
            why = f"a batch of {rows} has no image for each strength"
            raise ConfigError("method.max_strength", self.max_strength, why, f"use at most {rows - 1}")

    def perturb(self, batch: Batch) -> Batch:
        top, chunk = int(self.strength), self._chunks(batch)
        lengths = torch.tensor(self._lengths(top), dtype=batch.x.dtype, device=batch.x.device)

        def finished(state: State) -> Tensor:
            return chunk[state.rows] <= state.step

        objective = Objective(self.model, self.attack_risk, batch.y)
        x_adv = self.run_attack(objective, batch.x, step_size=lengths[chunk], steps=top, stop=finished)
        clean = (chunk == 0).view(-1, 1, 1, 1)
        return batch.with_adv(torch.where(clean, batch.x, x_adv))

    def _chunks(self, batch: Batch) -> Tensor:
        """The strength of each row, (B,): chunks are cut from the joint batch; a process has consecutive rows of it."""
        rows, top = len(batch), int(self.strength)
        joint = torch.arange(rows, device=batch.x.device) + self.clock.rank * rows
        return (joint // (rows * self.clock.world // (top + 1))).clamp_max(top)

    def _lengths(self, top: int) -> list[float]:
        """The step size of every strength 0..top."""
        rng, eps = self.rng("length"), self.attack.eps
        return [0.0] + [2 * eps / j * rng.scalar(*sorted((1, 10 / j))) for j in range(1, top + 1)]

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # steps of a share of ε

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {}, logits)

    def epoch_figures(self) -> dict[str, float]:
        return {"strength": int(self.strength)}

    def on_epoch(self, report: Report) -> Decision | None:
        if int(self.strength) == self.max_strength:
            return None
        ready = report.row["train"]["accuracy"] > self.threshold
        if self.advance == "validation":
            return self._by_validation(report, ready)
        self.strength += int(ready)
        return None

    def _by_validation(self, report: Report, ready: bool) -> Decision | None:
        """A stage's first epoch is its best so far: `Restore` always finds what `Keep` kept in the same stage."""
        accuracy_now = self._validate(report)
        if accuracy_now > float(self.best):
            self.best.fill_(accuracy_now)
            self.stale.zero_()
            return Keep("stage")
        self.stale += 1
        if not ready or int(self.stale) < self._patience():
            return None
        self.strength += 1
        self.best.fill_(-1)
        self.stale.zero_()
        return Restore("stage")

    def _validate(self, report: Report) -> float:
        top = int(self.strength)
        if top == 0:
            return report.validate(steps=0, start="zero")
        return report.validate(steps=top, step_size=2 * self.attack.eps / top)

    def _patience(self) -> int:
        """Whole epochs; the hair's breadth keeps 10/300 of 300 at 10."""
        return max(1, math.ceil(self.patience * self.clock.epochs - 1e-9))
