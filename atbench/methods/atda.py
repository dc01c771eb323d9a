"""Adversarial training with domain adaptation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, SelfLabelled, cross_entropy
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import Loss, Method


class Atda(Method):
    """ATDA (Song et al. 2019, ICLR, arXiv 1810.00740): CE(f(x), y) + CE(f(x'), y) + λ · (L_MMD + L_CORAL + L_margin).

    Clean and FGSM images are two domains whose logits Z = f(x) and Z' = f(x') (B, K) are to have one distribution:
    L_MMD is the mean absolute difference of their means, L_CORAL that of their K × K covariances, and L_margin =
    Σ_i Σ_{k≠y_i} softplus(‖z_i − c_{y_i}‖₁ − ‖z_i − c_k‖₁) / (2B(K − 1)) over the rows of both draws them to the
    centres c_k of their classes. All three are of the joint batch. Behind the update each centre moves,
    c_k ← c_k − α · Σ_{y_i=k} (c_k − z_i) / (1 + n_k), by the n_k logits of its class in both domains; in the loss it is
    a constant. The attack climbs the loss of the predicted class, so that no label leaks, in train mode, dropout on.
    Cost: 8 forward passes a batch.

    Paper and code: JHL-HUST/ATDA, loss.py and tf_utils.py, where the covariance is not divided by B − 1
    (`covariance: false`), so that the term grows with the batch. Not here: attacks against further networks
    (ensembles), and its variant with ten steps, which is `attack.steps=10 attack.start=uniform` in part.
    Known weakness: no AutoAttack figure is known; the 58.10 % on CIFAR-10 are for ε = 4/255.

    Args:
        weight: λ.
        rate: α.
        covariance: whether L_CORAL's matrices are divided by B − 1.
    """

    takes_micro_batches = False
    requires_hard_labels = True
    centres: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 1 / 3,
        rate: Share = 0.1,
        covariance: bool = False,
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.rate, self.covariance = weight, rate, covariance

    def setup(self, data: TrainData) -> None:
        classes = len(data.source.classes)
        self.register_buffer("centres", torch.zeros((classes, classes), dtype=data.dtype, device=data.device))

    def perturb(self, batch: Batch) -> Batch:
        predicted = SelfLabelled(self.model, cross_entropy, lambda logits: logits.argmax(dim=1))
        return batch.with_adv(self.run_attack(predicted, batch.x))

    def loss(self, batch: Batch) -> Loss:
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        natural, robust = self.risk(clean, batch.y).mean(), self.risk(adversarial, batch.y).mean()
        z, z_adv = self.gather(clean, differentiable=True), self.gather(adversarial, differentiable=True)
        rows, labels = torch.cat([z, z_adv]), self.gather(batch.y).repeat(2)
        batch.aux["logits"], batch.aux["labels"] = rows.detach(), labels  # `after_update` moves the centres by them
        mmd = (z.mean(dim=0) - z_adv.mean(dim=0)).abs().mean()
        coral = (self.scatter(z) - self.scatter(z_adv)).abs().mean()
        margin = self.margin(rows, labels)
        terms = {"ce": natural, "adv": robust, "mmd": mmd, "coral": coral, "margin": margin}
        total = natural + robust + self.weight * (mmd + coral + margin)
        return Loss(total, {name: term.detach() for name, term in terms.items()}, adversarial)

    def scatter(self, z: Tensor) -> Tensor:
        """(Z − mean)ᵀ(Z − mean), (K, K), divided by B − 1 if it is to be a covariance."""
        centred = z - z.mean(dim=0)
        return centred.T @ centred / (max(len(z) - 1, 1) if self.covariance else 1)

    def margin(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Mean of softplus(‖z − c_y‖₁ − ‖z − c_k‖₁) over rows and wrong classes k."""
        distances = (rows[:, None] - self.centres.to(rows.dtype)).abs().sum(dim=2)
        gaps = F.softplus(distances.gather(1, labels[:, None]) - distances)
        right = F.one_hot(labels, distances.shape[1]).bool()
        return gaps.masked_fill(right, 0).sum() / (len(rows) * (distances.shape[1] - 1))

    def after_update(self, batch: Batch) -> None:
        members = F.one_hot(batch.aux["labels"], len(self.centres)).to(self.centres.dtype)
        counts, sums = members.sum(dim=0)[:, None], members.T @ batch.aux["logits"].to(self.centres.dtype)
        self.centres -= self.rate * (counts * self.centres - sums) / (1 + counts)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 6
