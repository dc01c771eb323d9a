"""Adaptive diversity promoting training of an ensemble."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss
from atbench.methods.ensemble import EnsembleMethod
from atbench.models import Ensemble

OFFSET = 1e-6  # P2333/Adaptive-Diversity-Promoting, utils.py: det_offset


class Adp(EnsembleMethod):
    """ADP (Pang et al. 2019, ICML, arXiv 1901.08846): Σ_m CE(f_m(x), y) − α · H(p̄) − β · log det(QᵀQ + 10⁻⁶·I).

    p_m is member m's softmax, p̄ their mean and H its entropy. Row m of Qᵀ holds the non-maximal predictions, p_m
    without its entry y, at length 1, so that the determinant is the squared volume that they span: members differ in
    how they are wrong and agree in what is right. Means over the batch; no gradient is stopped; no inner problem.
    With `adversarial` the whole loss is that at x plus that at x', and x' climbs CE of the ensemble away from its own
    prediction at x, with an ε that is drawn for every batch from U(least_eps·ε, ε), and steps in proportion.
    The determinant is computed in float64: that of members which agree is 10⁻¹², and fp32 ends at 10⁻⁷.
    Cost: 3 forward passes of the ensemble a batch; 2k + 7 with `adversarial`.

    Source: P2333/Adaptive-Diversity-Promoting, utils.py, train_cifar.py and advtrain_cifar10.py. What differs: its
    cross-entropy stops at 10⁻⁷ (Keras); its attack takes p̄ for logits and applies another softmax, which bends the
    direction of a step little; the box of its adversarial training is that of pixels while images are centred, so that
    x' loses what is below the mean (a slip, since the mean is subtracted twice); its BatchNorm statistics are those of
    clean batches alone. zjysteven/DVERGE adds Σ_m CE(f_m(x'), y) instead, without the regulariser and with the label.
    Known weaknesses: the paper's attack, 10 steps of ε/10, stops before it has converged; more steps and attacks
    without gradients leave a fraction of its figures (Tramèr et al. 2020, arXiv 2002.08347, from memory).

    Args:
        entropy: α.
        diversity: β.
        adversarial: whether to train on x' as well.
        least_eps: smallest radius of training, as a share of the attack's ε; 1 for always the attack's own.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        entropy: NotNegative = 2.0,
        diversity: NotNegative = 0.5,
        adversarial: bool = False,
        least_eps: Share = 0.2,
    ) -> None:
        super().__init__(model, attack, adversarial)
        self.entropy, self.diversity, self.least_eps = entropy, diversity, least_eps

    def setup(self, data: TrainData) -> None:
        wrong = len(data.source.classes) - 1
        if len(self.members) > wrong:
            why = f"there are {wrong} wrong classes, in which no more members can all differ"
            raise ConfigError("model.members", len(self.members), why, f"use {wrong} or fewer")

    def perturb(self, batch: Batch) -> Batch:
        if not self.adversarial:
            return batch.with_adv(batch.x)
        predicted = self.probabilities(batch.x).argmax(dim=1)
        scale = self.rng("radius").scalar(self.least_eps, 1.0)
        objective = Objective(self.model, cross_entropy, predicted)
        eps, step_size = scale * self.attack.eps, scale * self.attack.step_size
        return batch.with_adv(self.run_attack(objective, batch.x, eps=eps, step_size=step_size))

    def loss(self, batch: Batch) -> Loss:
        clean = self._at(batch.x, batch.y)
        if not self.adversarial:
            return clean
        adversarial = self._at(batch.x_adv, batch.y).total
        return Loss(clean.total + adversarial, {**clean.terms, "adversarial": adversarial.detach()}, clean.logits)

    def _at(self, x: Tensor, y: Tensor) -> Loss:
        """The loss at `x`."""
        logits = torch.stack([member(x) for member in self.members])
        together = Ensemble.combine(logits)
        ce = torch.stack([self.risk(each, y).mean() for each in logits]).sum()
        entropy, volume = mean_entropy(together), log_det(logits, y).mean()
        total = ce - self.entropy * entropy - self.diversity * volume
        return Loss(total, {"ce": ce.detach(), "entropy": entropy.detach(), "log_det": volume.detach()}, together)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 7 if self.adversarial else 3


def mean_entropy(logits: Tensor) -> Tensor:
    """−Σ_k p_k log p_k, p = softmax(z), mean over the batch."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def log_det(logits: Tensor, y: Tensor) -> Tensor:
    """log det(QᵀQ + 10⁻⁶·I) of each example, (B,), from the members' logits (M, B, K) and labels (B,)."""
    z = logits.double().transpose(0, 1)
    label = F.one_hot(y, z.shape[2]).bool()[:, None]
    # The softmax over the wrong classes is p_m without entry y up to its length, and never all zero.
    wrong = z.masked_fill(label, -torch.inf).softmax(dim=2)
    rows = wrong / wrong.norm(dim=2, keepdim=True)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.logdet(rows @ rows.mT + OFFSET * eye).to(logits.dtype)
