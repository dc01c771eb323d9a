"""Free adversarial training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.data import Batch, TrainData
from atbench.methods.base import Loss, Method, Round, accuracy


class FreeAt(Method):
    """Free-m (Shafahi et al. 2019, NeurIPS, arXiv 1904.12843, alg. 1): m updates on one batch, each also moving δ.

    One backward pass of CE(f(clip(x + δ)), y) gives the weights' gradient, used at once, and δ's:
    δ ← Π_{B(0, ε)}( δ + ε · d(∇_δ) ), d the steepest direction (sign for L∞), carried to the next replay and the next
    batch. δ belongs to the slot in the batch, not to the example, and is never reset. Train mode throughout.
    Cost: 3m forward passes a batch, for m updates: the authors divide the epochs by m.

    Paper and code: ashafahi/free_adv_train (TensorFlow) does not clip δ to the legal pixels, x + δ is clipped; kept
    here.
    Known weakness: large m forgets, and single-step ascent can overfit catastrophically at larger ε.
    Left by AutoAttack: 41.47 % of the reported 46.19 % (RobustBench, Free-8, WRN-34-10).

    Args:
        replays: m.
    """

    delta: Tensor

    def __init__(self, model: torch.nn.Module, attack: GradientAttack, replays: int = 8) -> None:
        super().__init__(model, attack)
        self.replays = replays

    def setup(self, data: TrainData) -> None:
        shape = (data.batch_size - data.extra_size, *data.source.shape)
        self.register_buffer("delta", torch.zeros(shape, dtype=data.dtype, device=data.device))

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its pass with the update

    def rounds(self, batch: Batch) -> Iterator[Round]:
        for _ in range(self.replays):
            yield Round(batch.having(), perturb=False)

    def loss(self, batch: Batch) -> Loss:
        rows = len(batch)
        start = self.clock.rank * rows
        delta = self.delta[start : start + rows].clone().requires_grad_()
        batch.aux["delta"] = delta  # `commit` reads its gradient
        logits = self.model((batch.x + delta).clamp(0, 1))
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {"accuracy": accuracy(logits, batch.y)})

    def commit(self, batch: Batch) -> None:
        delta = batch.aux["delta"]
        step = self.attack.eps * self.attack.ball.steepest(delta.grad)
        self.delta.copy_(self.gather(self.attack.ball.shrink(delta.detach() + step, self.attack.eps)))

    def floor(self, steps: int) -> float:
        return 3 * self.replays
