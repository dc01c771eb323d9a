"""Minimum loss constrained adversarial training: by weight perturbation, and by scaling the loss."""

from __future__ import annotations

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.pgd_at import PgdAt


class Mlcat(PgdAt):
    """MLCAT-WP (Yu et al. 2022, ICML, arXiv 2206.08675): CE(f(x'), y) at weights w + γ·d that raise what is < ℓ_min.

    Examples whose adversarial loss is small are those that overfit. The weights climb the mean over the batch of CE_i ·
    [CE_i < ℓ_min], 10 gradients that add up, until ‖d‖ = ‖w‖ over all convolutions and linear layers together; the
    update is PGD-AT's, of the whole batch, with its gradient taken there. d is `plus.awp` with `steps` and `scale`,
    which the method's YAML switches on (`plus=awp` on top goes back to AWP's own step and size, on the same loss).
    Inner: PGD-AT's, in train mode. With ℓ_min = 0 it is PGD-AT to the bit.
    Cost: (2k + 3) forward passes a batch, and 30 more of the weight perturbation (3 a step).

    Source: ChaojianYu/Understanding-Robust-Overfitting (train_step5_weight_15.py, utils_wp.py). Its attack ends with a
    further forward, to choose among restarts of which it makes one: running statistics see that batch too. Images are
    in half precision there. The best checkpoint is chosen on test images.
    Known weaknesses: more than twice the cost of PGD-AT. Robust accuracy by AutoAttack, CIFAR-10, ε = 8/255,
    PreActResNet-18: about 50.7 %, with a small difference between best and last (from memory).

    Args:
        min_loss: ℓ_min.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, min_loss: NotNegative = 1.5) -> None:
        super().__init__(model, attack)
        self.min_loss = min_loss

    def ascent_loss(self, batch: Batch) -> Loss:
        losses = self.risk(self.model(batch.x_adv), batch.y)
        return Loss((losses * (losses < self.min_loss)).mean(), {})


class MlcatLs(PgdAt):
    """MLCAT-LS (Yu et al. 2022, ICML, arXiv 2206.08675): CE_i · max(ℓ_min / CE_i, 1), CE_i = CE(f(x'_i), y_i).

    A loss below ℓ_min is scaled up to it. Inner: PGD-AT's, in train mode. With ℓ_min = 0 it is PGD-AT to the bit.
    Cost: (2k + 3) forward passes a batch.

    Paper and code: ChaojianYu/Understanding-Robust-Overfitting (train_step4_scale_15.py) lets the gradient flow through
    the scale, where it cancels: an example below ℓ_min has the loss ℓ_min and no gradient, it is left out
    (`detach_scale: false`). With a constant scale, as the paper's text reads, small losses weigh more.
    Further differences, and known weaknesses: as MLCAT-WP. Figures by AutoAttack were not checked.

    Args:
        min_loss: ℓ_min.
        detach_scale: whether the scale is a constant for the gradient.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, min_loss: NotNegative = 1.5, detach_scale: bool = False
    ) -> None:
        super().__init__(model, attack)
        self.min_loss, self.detach_scale = min_loss, detach_scale

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        losses = self.risk(logits, batch.y)
        small = losses.detach() < self.min_loss
        if self.detach_scale:
            scale = self.min_loss / losses.detach().clamp_min(torch.finfo(losses.dtype).tiny)
            scaled = torch.where(small, scale * losses, losses)
        else:
            scaled = losses.masked_fill(small, self.min_loss)
        return Loss(scaled.mean(), {"ce": losses.detach().mean(), "small": small.to(losses.dtype).mean()}, logits)
