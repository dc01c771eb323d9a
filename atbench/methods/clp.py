"""Clean logit pairing, and logit squeezing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method


class Clp(Method):
    """CLP (Kannan et al. 2018, arXiv 1803.06373): CE(f(x̃), y) + λ · penalty(f(x̃)), x̃ = clip(x + σ·N(0, I)).

    No adversary. `pairs` (CLP): ‖f(x̃_i) − f(x̃_j)‖² / K, a mean over the pairs of rows (0, 1), (2, 3), …, which are
    random images, of any classes, since the data are shuffled. The whole batch, the first and the second of each pair
    are three forwards, each with its own batch statistics. `norms` (LSQ, logit squeezing): the mean of ‖f(x̃)‖₂;
    `squares`: of ‖f(x̃)‖₂².
    Cost: 6 forward passes a batch with `pairs`, else 3.

    Paper and code: uds-lsv/evaluating-logit-pairing-methods (mnist_cifar10/train.py) pairs the halves of a batch, here
    neighbours, so that two processes pair as one does. Its LSQ is `norms` with λ = 0.5 in a second forward of the
    batch, here of the same one; the paper's is `squares` (from memory). σ = 0.5 is its option, off by default; it is on
    here, for the paper's figures are with noise (from memory) and neither penalty does anything without it. CLP's λ is
    not published there: 0.5 is LSQ's.
    Known weakness: the robustness is gradient masking. On MNIST 62.4 % (CLP) and 70.6 % (LSQ) under PGD fell to 4.1 %
    and 5.0 % under the strongest attack, on CIFAR-10 at 16/255 2.8 % and 27.0 % to 0.0 % and 1.7 % (Mosbach et al.
    2018, arXiv 1810.12042).

    Args:
        weight: λ.
        penalty: `pairs`, `norms` or `squares`.
        noise: σ, in units of the [0, 1] pixel scale; 0 leaves the images as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 0.5,
        penalty: str = "pairs",
        noise: NotNegative = 0.5,
    ) -> None:
        super().__init__(model, attack)
        if penalty not in PENALTIES:
            known = ", ".join(PENALTIES)
            raise ConfigError("method.penalty", penalty, "there is no such penalty", f"use one of {known}")
        self.weight, self.penalty, self.noise = weight, penalty, noise
        self.takes_micro_batches = penalty != "pairs"  # a part may have an odd number of images

    def setup(self, data: TrainData) -> None:
        rows = (data.batch_size - data.extra_size) // data.shard.world
        if self.penalty == "pairs" and rows % 2:
            why = f"logits are paired, and a process has {rows} labelled images a batch"
            raise ConfigError("train.batch_size", data.batch_size, why, "use one that gives it an even number")

    def perturb(self, batch: Batch) -> Batch:
        if self.noise == 0:
            return batch.with_adv(batch.x)
        return batch.with_adv((batch.x + self.noise * self.rng("noise").normal(batch.x)).clamp_(0, 1))

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # no attack

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        risk = self.risk(logits, batch.y).mean()
        penalty = PENALTIES[self.penalty](self._apart(batch.x_adv) if self.penalty == "pairs" else logits)
        terms = {"ce": risk.detach(), "penalty": penalty.detach()}
        return Loss(risk + self.weight * penalty, terms, logits)

    def _apart(self, x: Tensor) -> Tensor:
        """Logits of all rows, from a forward of every pair's first image and one of every pair's second."""
        return torch.stack([self.model(x[0::2]), self.model(x[1::2])], dim=1).flatten(0, 1)

    def forward_cost(self, steps: int) -> float:
        return 6 if self.penalty == "pairs" else 3


def pairs(logits: Tensor) -> Tensor:
    """Mean squared difference of the logits of neighbouring rows."""
    return F.mse_loss(logits[0::2], logits[1::2])


def norms(logits: Tensor) -> Tensor:
    """Mean Euclidean norm of the logits."""
    return logits.norm(dim=1).mean()


def squares(logits: Tensor) -> Tensor:
    """Mean squared Euclidean norm of the logits."""
    return logits.square().sum(dim=1).mean()


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"pairs": pairs, "norms": norms, "squares": squares}
