"""Robust self-training."""

from __future__ import annotations

from atbench.attacks import Objective, kl_from
from atbench.data import Batch
from atbench.methods.trades import Trades
from atbench.methods.unlabelled import PseudoLabelled


class Rst(PseudoLabelled, Trades):
    """RST (Carmon et al. 2019, NeurIPS, arXiv 1905.13736): TRADES on labelled and pseudo-labelled images together.

    1. A standard classifier f₀ is trained on the labelled images. 2. ỹ = argmax f₀(x̃) for every image of the pool:
    once, hard, never refreshed. 3. TRADES on batches that are part labelled, part pool (`train.extra_data.fraction`):
    1/B Σ_i [ CE(f(x_i), y_i) + β · KL(f(x_i) ‖ f(x'_i)) ] over all rows, y_i a label or a pseudo-label.
    Cost: (2k + 7) forward passes a batch, pool rows included; before that the labeller's run.

    Paper and code: yaircarmon/semisup-adv (robust_self_training.py) draws pool images with replacement; here
    permutations of the pool are walked through. As in losses.py, adversarial images are forwarded before clean ones.
    The code shuffles each batch so that DataParallel gives every GPU both kinds; here every process has its share of
    both. Left out: rows without any label (entropy term), and the L2 stability variant without an attack (RST_stab).
    The paper's pool are 500,000 further images. Without such data part of the labels is dropped, and the experiment
    measures how well pseudo-labels replace them.
    Robust accuracy later measured by AutoAttack: 59.53 %; reported: 62.5 % (RobustBench, WRN-28-10 with the
    500,000 images).

    Args:
        beta: as in TRADES.
    """

    adversarial_first = True

    def perturb(self, batch: Batch) -> Batch:
        if batch.extra is None:
            return super().perturb(batch)
        merged = self.merge(batch)
        objective = Objective(self.model, kl_from, self.probabilities(merged.x))
        return merged.with_adv(self.run_attack(objective, merged.x, start=self.merged_start(batch)))
