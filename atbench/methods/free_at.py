"""Free adversarial training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method, Round

GRADIENTS = ("delta", "image")


class FreeAt(Method):
    """Free-m (Shafahi et al. 2019, NeurIPS, arXiv 1904.12843, alg. 1): m updates on one batch, each also moving δ.

    With x' = clip(x + δ) one backward pass of CE(f(x'), y) gives the weights' gradient, used at once, and δ's:
    δ ← Π_{B(0, ε)}( δ + ε · d(∇_δ CE) ), d the steepest direction (sign for L∞), carried to the next replay and the
    next batch. δ belongs to the slot in the batch, not to the example, and is never reset. Train mode throughout.
    Cost: 3m forward passes a batch, for m updates: the authors divide the epochs by m.

    Paper and code: ashafahi/free_adv_train (TensorFlow), where the published figures come from, takes δ's gradient,
    through the clipping: where x + δ lies outside the pixels there is none, and δ stays where it is. Algorithm 1 takes
    the gradient at the image (`gradient: image`). Few pixels of CIFAR-10 are so, but most of digits are black: there
    PGD-20 left 56 % of 250 test images with δ's and 78 % with the image's (`model.width=16`, seed 0). Neither clips δ
    itself to the legal pixels.
    Known weakness: large m forgets, and single-step ascent can overfit catastrophically at larger ε.
    Robust accuracy later measured by AutoAttack: 41.47 %; reported: 46.19 % (RobustBench, Free-8, WRN-34-10).

    Args:
        replays: m.
        gradient: which one moves δ, `delta` or `image`.
    """

    delta: Tensor

    def __init__(
        self, model: torch.nn.Module, attack: GradientAttack, replays: Count = 8, gradient: str = "delta"
    ) -> None:
        super().__init__(model, attack)
        if gradient not in GRADIENTS:
            known = ", ".join(GRADIENTS)
            raise ConfigError("method.gradient", gradient, "there is no such choice", f"use one of {known}")
        self.replays, self.gradient = replays, gradient

    def setup(self, data: TrainData) -> None:
        shape = (data.batch_size - data.extra_size, *data.source.shape)
        self.register_buffer("delta", torch.zeros(shape, dtype=data.dtype, device=data.device))

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its pass with the update

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        for _ in range(self.replays):
            yield Round(batch.with_adv(), perturb=False)

    def loss(self, batch: Batch) -> Loss:
        delta = self._slots(batch).requires_grad_(self.gradient == "delta")
        x_adv = clip(batch.x + delta)
        if self.gradient == "image":
            x_adv.requires_grad_()
        batch.aux["source"] = delta if self.gradient == "delta" else x_adv  # `after_update` reads its gradient
        logits = self.model(x_adv)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {}, logits)

    def _slots(self, batch: Batch) -> Tensor:
        """This process's rows of δ: a copy."""
        rows = len(batch)
        return self.delta[self.clock.rank * rows : (self.clock.rank + 1) * rows].clone()

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # a step of ε a replay

    def single_step(self) -> bool:
        return True  # one gradient an update, whatever `attack.steps` says

    def after_update(self, batch: Batch) -> None:
        ahead = self._slots(batch) + self.attack.eps * self.attack.ball.steepest(batch.aux["source"].grad)
        self.delta.copy_(self.gather(self.attack.ball.shrink(ahead, self.attack.eps)))

    def forward_cost(self, steps: int) -> float:
        return 3 * self.replays
