"""Fast adversarial training: FGSM from a random start, ended when it overfits catastrophically."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.config.ranges import Count, NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import Decision, Keep, Report, Stop
from atbench.methods.pgd_at import PgdAt
from atbench.models import attack_mode


class FastAt(PgdAt):
    """Fast AT, FGSM-RS (Wong et al. 2020, ICLR, arXiv 2001.03994): CE(f(x+δ), y) after one step from a random start.

        δ ~ U(−ε, ε) in the box,   δ ← Π_ε( δ + α · sign(∇_δ CE(f(x+δ), y)) ) in the box,   α = 1.25 ε

    Early stop: after each epoch PGD-`probe_steps` attacks its first batch, as it was augmented, with batch statistics;
    an image that is misclassified moves no further. Where the accuracy fell by more than `drop` since the epoch before,
    training ends with the weights of that epoch.
    Cost: 5 forward passes a batch, and 2 · `probe_steps` + 1 of one batch an epoch.

    Source: locuslab/fast_adversarial, CIFAR10/train_fgsm.py; α and the start are settings of the attack. Its early stop
    is a flag, off by default, and the README's advice; it is on here. The code's probe also moves the running
    statistics of BatchNorm by 7 forwards of one batch, which the kept weights include; ours moves nothing. Left out:
    the start from the last batch's δ (`--delta-init previous`), which the code of MNIST and ImageNet has not.
    Known weaknesses: catastrophic overfitting at larger ε and in long runs: accuracy under PGD falls to 0 within an
    epoch while that under FGSM rises (`guard.collapse` watches for it within an epoch); a smaller α helps.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 43.21 %; reported: 46.06 % (RobustBench).

    Args:
        drop: the fall of accuracy that ends training, from 0 to 1; None trains to the end.
        probe_steps: steps of the probe's PGD.
        probe_step_size: length of such a step as a share of ε.
    """

    previous: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        drop: Share | None = 0.2,
        probe_steps: Count = 5,
        probe_step_size: NotNegative = 0.25,
    ) -> None:
        super().__init__(model, attack)
        self.drop, self.probe_steps, self.probe_step_size = drop, probe_steps, probe_step_size
        self.register_buffer("previous", torch.tensor(0.0, dtype=torch.float64))

    def setup(self, data: TrainData) -> None:
        self.data = data

    def on_epoch(self, report: Report) -> Decision | None:
        if self.drop is None:
            return None
        robust = self.probe(self.data.batch(self.clock.epoch, 0))
        before = float(self.previous)
        if robust - before < -self.drop:
            why = f"accuracy under PGD-{self.probe_steps} fell from {before:.1%} to {robust:.1%} on a training batch"
            return Stop(f"{why}: the weights are those of the epoch before", restore="before")
        self.previous.fill_(robust)
        return Keep("before")

    def probe(self, batch: Batch) -> float:
        """Accuracy under PGD on a batch, with its statistics."""
        attack, x, y = self.attack, batch.x, batch.y
        label = y if y.ndim == 1 else y.argmax(dim=1)
        with attack_mode(self, "batch"):
            x_adv = (x + attack.ball.sample(x, attack.eps, self.rng("probe"))).clamp(0, 1)
            for _ in range(self.probe_steps):
                x_adv.requires_grad_()
                logits = self.model(x_adv)
                grad = torch.autograd.grad(cross_entropy(logits, y).sum(), x_adv)[0]
                moved = attack.ball.ascend(x_adv.detach(), grad, self.probe_step_size * attack.eps)
                right = (logits.argmax(dim=1) == label).view(-1, *[1] * (x.ndim - 1))
                x_adv = torch.where(right, attack.ball.project(x, moved, attack.eps), x_adv.detach())
            with torch.no_grad():
                right = self.model(x_adv).argmax(dim=1) == label
        return float(self.gather(right).double().mean())
