"""Robust self-training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import NotNegative
from atbench.data import Batch, Images, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Stage
from atbench.methods.trades import Trades


class Rst(Trades):
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

    requires_hard_labels = True
    adversarial_first = True
    LABEL_CHUNK = 1000  # images a forward of the labeller: bounds memory, changes nothing

    labels: Tensor

    def __init__(self, model: nn.Module, attack: GradientAttack, beta: NotNegative = 6.0) -> None:
        super().__init__(model, attack, beta)
        self.pool: Images | None = None
        self.train_size, self.dtype = 0, torch.float32

    def setup(self, data: TrainData) -> None:
        if data.pool is None:
            fix = "set train.extra_data.labelled=0.5 train.extra_data.fraction=0.5"
            raise ConfigError("train.extra_data.labelled", None, "robust self-training needs an unlabelled pool", fix)
        self.pool, self.train_size, self.dtype = data.pool, len(data.train), data.dtype
        # -1 is no class: a run that skipped `load_pretrained` fails at its first loss.
        self.register_buffer("labels", torch.full((len(data.pool),), -1, device=data.device))

    def pretraining(self) -> dict[str, Stage]:
        return {"labeller": Stage(method={"_target_": "atbench.methods.standard.Standard"})}

    @torch.no_grad()
    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        assert self.pool is not None, "`setup` comes first"
        for rows in torch.arange(len(self.pool), device=self.labels.device).split(self.LABEL_CHUNK):
            self.labels[rows] = stages["labeller"](self.pool.floats(rows, self.dtype)).argmax(dim=1)

    def perturb(self, batch: Batch) -> Batch:
        if batch.extra is None:
            return super().perturb(batch)
        # Each part draws its own start: rows of a joint draw over merged rows would depend on how processes share them.
        starts = ((batch.x, self.rng("search")), (batch.extra.x, self.rng("pool")))
        start = torch.cat([self.attack.begin(x, self.attack.eps, rng) for x, rng in starts])
        merged = self._merge(batch, batch.extra)
        objective = Objective(self.model, kl_from, self.probabilities(merged.x))
        return merged.with_adv(self.run_attack(objective, merged.x, start=start))

    def _merge(self, batch: Batch, extra: Batch) -> Batch:
        """Labelled rows, then pool rows with pseudo-labels, their indices going on after the train split's."""
        x, y = torch.cat([batch.x, extra.x]), torch.cat([batch.y, self.labels[extra.index]])
        index = torch.cat([batch.index, extra.index + self.train_size])
        return replace(batch, x=x, y=y, index=index, view=None, extra=None)
