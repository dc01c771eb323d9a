"""ARoW."""

from __future__ import annotations

from atbench.data import Batch
from atbench.methods.base import Loss
from atbench.methods.divergences import kl_divergence
from atbench.methods.trades import Trades


class Arow(Trades):
    """ARoW, anti-robust weighted regularization (Yang et al. 2023, ICML, arXiv 2206.03353): CE(f(x), y) + β · mean_i
    KL(f(x_i) ‖ f(x'_i)) · (1 − p_y(x'_i)).

    TRADES that presses hardest on the images whose adversarial image is least believed to be what it is; MART has 1 −
    p_y(x), and boosted cross-entropy on x', in the same places. Labels of CE are smoothed (`train.label_smoothing`).
    Inner: maximise KL(p(x) ‖ p(x')) from a uniform start in eval mode; p(x) is computed once an attack. Nothing is
    detached: the gradient flows through the weight, and through p(x) too; clean and adversarial images in two forwards.
    Cost: (2k + 7) forward passes a batch.

    Source: dyoony/ARoW (loss.py, main.py, attacks/pgd.py), whose guard 1e-12 on p(x') log-softmax makes needless. β is
    the code's, 2λ of the paper. For CIFAR-100 its README attacks with cross-entropy, which its main.py refuses with
    this loss; that is left out here.
    Known weaknesses: not on RobustBench; an AutoAttack figure of others' was not found. The published ones are of
    averaged weights and smoothed labels, each of which gains by itself.

    Args:
        beta: β, twice the paper's λ.
    """

    requires_hard_labels = True

    def loss(self, batch: Batch) -> Loss:
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        natural = self.risk(clean, batch.y).mean()
        kl = kl_divergence(clean, adversarial)
        doubt = 1 - adversarial.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        weighted = (kl * doubt).mean()
        terms = {"ce": natural.detach(), "kl": weighted.detach()}
        return Loss(natural + self.beta * weighted, terms, adversarial)
