"""Single-step training on the nearest misclassified point of the way to the adversarial image."""

from __future__ import annotations

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Count
from atbench.data import Batch
from atbench.methods.base import Loss, Method
from atbench.models import attack_mode


class KimInterval(Method):
    """Stable single-step training (Kim et al. 2021, AAAI, arXiv 2010.01799): CE(f(x + k*/c · δ), y).

    δ is the step of FGSM from a random start x + η (Π_ε and the box, as `fast_at`); k* of an example is the smallest k
    in 0, …, c whose point is misclassified, c if none is before it:
    k = 0 where f(x + η) ≠ y, so that it trains on x itself; k = 1, …, c − 1 where f(x + k/c · δ) ≠ y.
    All of the search is in eval mode, the update in train mode; only examples that every earlier point left right are
    looked at again. The record's `share` is the mean of k*/c.
    Cost: 5 forward passes a batch, and at most c − 1 of the examples that are still right.

    Source: Harry24k/catastrophic-overfitting, defenses/trainers/co_adv_trainer.py. It stacks the points of an example
    in one forward, as many as `inf_batch` (1024) images allow, and skips the first k that does not fit; here none is
    skipped, and none behind the first misclassified one is computed. The printed algorithm falls back to 1/c of δ if
    read literally; the code, and this, to δ.
    Known weakness: images get nearer and nearer late in training: clean accuracy rises, robust accuracy ends below that
    of PGD-AT and GradAlign. The paper's 50.50 % is under FGSM.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 38.33 %, under PGD-50 51.46 % (FastAT Benchmark,
    which attacks in train mode and has a recipe of its own).

    Args:
        checkpoints: c, the number of equal parts of the way.
    """

    requires_hard_labels = True

    def __init__(self, model: nn.Module, attack: GradientAttack, checkpoints: Count = 3) -> None:
        super().__init__(model, attack)
        self.checkpoints = checkpoints

    def perturb(self, batch: Batch) -> Batch:
        attack, x, y, c = self.attack, batch.x, batch.y, self.checkpoints
        start = attack.begin(x, attack.eps, self.rng())
        grad, logits = self.input_gradient(start, y)
        x_adv = attack.step_along(x, start, grad)
        part = (x_adv - x) / c
        right = logits.argmax(dim=1) == y
        nearest = torch.where(right, c, 0)
        rows = right.nonzero().flatten()
        for k in range(1, c):
            if len(rows) == 0:
                break
            with torch.no_grad(), attack_mode(self, "eval"):
                wrong = self.model(x[rows] + k * part[rows]).argmax(dim=1) != y[rows]
            nearest[rows[wrong]] = k
            rows = rows[~wrong]
        wide = nearest.view(-1, *[1] * (x.ndim - 1))
        return batch.with_adv(torch.where(wide == c, x_adv, x + wide * part), share=nearest / c)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        return Loss(self.risk(logits, batch.y).mean(), {"share": batch.aux["share"].mean()}, logits)
