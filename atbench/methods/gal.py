"""Gradient alignment loss (diversity training)."""

from __future__ import annotations

import torch
from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import NotNegative
from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.ensemble import EnsembleMethod, pairwise_cosines
from atbench.methods.second_order import differentiable_gradient
from atbench.models import Ensemble


class Gal(EnsembleMethod):
    """GAL (Kariyappa & Qureshi 2019, arXiv 1901.09981): (1/M) Σ_m CE(f_m(x), y) + λ · log Σ_{i<j} exp cos(g_i, g_j).

    g_m = ∇_x CE(f_m(x), y) is member m's input gradient: what fools one member transfers to another where the two point
    the same way. The second term, the coherence, is a smooth maximum of the cosines of all pairs, of each example, and
    its mean over the batch; gradients are differentiated again to the weights. No inner problem. With `adversarial`
    (1/M) Σ_m CE(f_m(x'), y) is added, x' against the ensemble. Members have LeakyReLU(0.1): ReLU's input gradients are
    sparse, and make the coherence hard to lower (from memory).
    Cost: 6 forward passes of the ensemble a batch, 2k + 9 with `adversarial`; torch's second derivative of strided
    convolutions takes a little more.

    Source: no code of the authors is known. Read and run: zjysteven/DVERGE, train/train_gal.py, which forwards x twice
    through each member, for g and for the cross-entropy, so that running statistics see it twice; here once. Images are
    trained on with noise of deviation 0.045 on every second one (`experiment=paper/gal`).
    AI-secure/Transferability-Reduced-Smooth-Ensemble has the sum of the cross-entropies instead of their mean.
    From memory: networks and number of members of the paper's own figures.
    Known weaknesses: a defence against transfer alone; next to nothing is left of it in white box at 8/255 (from
    memory), and no AutoAttack figure is known. The gradient of a sure example is small and noisy, and so is its cosine.

    Args:
        coherence: λ.
        adversarial: whether to train on x' as well.
    """

    second_order = True

    def __init__(
        self, model: nn.Module, attack: GradientAttack, coherence: NotNegative = 0.5, adversarial: bool = False
    ) -> None:
        super().__init__(model, attack, adversarial)
        self.coherence = coherence

    def loss(self, batch: Batch) -> Loss:
        x = batch.x.detach().requires_grad_()
        found = (differentiable_gradient(member, x, batch.y) for member in self.members)
        gradients, logits = zip(*found, strict=True)
        risk = torch.stack([self.risk(each, batch.y).mean() for each in logits]).mean()
        coherence = pairwise_cosines(gradients).logsumexp(dim=0).mean()
        total, terms = risk + self.coherence * coherence, {"ce": risk.detach(), "coherence": coherence.detach()}
        if self.adversarial:
            adversarial = self.adversarial_risks(batch).mean()
            total, terms = total + adversarial, {**terms, "adversarial": adversarial.detach()}
        return Loss(total, terms, Ensemble.combine(torch.stack(logits)))

    def forward_cost(self, steps: int) -> float:
        return 6.4 + (2 * steps + 3 if self.adversarial else 0)
