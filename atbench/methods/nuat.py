"""Nuclear norm adversarial training."""

from __future__ import annotations

from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative, Share, SomeShare
from atbench.methods.gat import GuidedMethod


class Nuat(GuidedMethod):
    """NuAT (Sriramanan et al. 2021, NeurIPS): CE(f(x), y) + λ · ‖F(x') − F(x)‖_* / B.

    F(x) (B, K) are the logits of the whole batch, that of all processes, and ‖·‖_* is the nuclear norm, the sum of the
    singular values: smoothness of the batch as one matrix, which errors in common directions cost less than the sum of
    the examples' own norms. The attack climbs the same (see `GuidedMethod`). λ rises from 0, epoch by epoch.

    Paper and code: val-iisc/NuAT, CIFAR10/NuAT_cifar10.py. NuAT-WA is `plus=ema` with decay 0.9998 and λ up to 4, and
    averages BatchNorm's statistics too. Left out: NuAT2, whose attack has two steps and the second term in the first
    alone, and its guidance by averaged weights.
    Robust accuracy later measured by AutoAttack on CIFAR-10 at 8/255: 49.24 %; PGD-20 of the authors: 53.30 % (their
    README, ResNet-18).

    Args:
        weight: λ in the end.
        noise: κ.
        alternate: whether every second attack has cross-entropy alone.
        rise: share of training in which λ grows linearly.
    """

    takes_micro_batches = False

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 4.5,
        noise: Share = 0.5,
        alternate: bool = True,
        rise: SomeShare = 90 / 100,
    ) -> None:
        super().__init__(model, attack, weight, noise, alternate)
        self.rise = rise

    @property
    def current_weight(self) -> float:
        return self.weight * min(1.0, self.clock.epoch / self.clock.epochs / self.rise)

    def distance(self, logits: Tensor, clean: Tensor) -> Tensor:
        joint = self.gather(logits - clean, differentiable=True)
        norm: Tensor = joint.norm(p="nuc")
        return (norm / len(joint)).expand(len(logits))
