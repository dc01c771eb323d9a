"""A pool of adversarial examples in the training set."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.attacks.min_norm.base import NearestAdversarial
from atbench.attacks.min_norm.lbfgs import LBFGS
from atbench.config.ranges import BelowOne, Count, Share, SomeShare
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.strong_adversary import stage_of
from atbench.models import Network, attack_mode
from atbench.runs.seeding import generator


class Szegedy(Method):
    """The first adversarial training (Szegedy et al. 2014, ICLR, arXiv 1312.6199): CE over training examples and a pool
    of adversarial ones, a random part of which is continuously replaced by new ones for the current network.

    Inner, for a few rows of each batch: the nearest misclassified image by box-constrained L-BFGS in the attack's mode
    (`atbench.attacks.min_norm.lbfgs`), at whatever distance; the run's ε, norm and steps are not used. It takes a slot
    of the pool after the update: the slots of an epoch are a part of a random order of all, and so many a step. A slot
    whose search finds nothing keeps what it has. Outer: a share of the rows of each batch is replaced by entries of the
    pool, drawn at random, with their true labels; a row whose slot is still empty stays clean. One joint forward.
    With `layer` the pool holds outputs of that stage, found without a box, and only what comes after it is trained on
    them. The paper has a pool for every layer and trains them in turn, here there is one pool at one place.
    Cost: 3 forward passes a batch, and up to searches·(2·steps + 1) + 3 more for each of renewal·pool_size of its rows.
    The pool lies in memory and in the checkpoint.

    From memory: the paper's text; it gives neither sizes nor rates, and no code was published. All numbers are ours. It
    reports, on MNIST with a network 100-100-10, a test error below 1.2 % against 1.6 % with weight decay alone, and
    that examples of the higher layers helped more than those of the input.
    Known weaknesses: meant to improve clean accuracy. The images of the pool lie just behind the boundary of a network
    that has gone on since, so that hardly any robustness at a given radius is left; they cost a search each. No
    AutoAttack figure is known.

    Args:
        share: the part of every batch that is drawn from the pool.
        pool_size: entries of the pool, as a share of the train images.
        renewal: share of the pool's slots that are renewed in an epoch.
        layer: the stage whose outputs are perturbed, negative ones count from the last; None: the image itself.
        steps, searches: of the L-BFGS attack.
    """

    requires_hard_labels = True
    pool: Tensor
    labels: Tensor
    places: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        share: BelowOne = 0.5,
        pool_size: SomeShare = 0.5,
        renewal: Share = 0.25,
        layer: int | None = None,
        steps: Count = 20,
        searches: Count = 4,
    ) -> None:
        super().__init__(model, attack)
        self.share, self.pool_size, self.renewal = share, pool_size, renewal
        self.layer = None if layer is None else stage_of(model, layer)
        self.search = LBFGS("l2", math.inf, steps, searches)

    def setup(self, data: TrainData) -> None:
        slots, image = max(1, round(self.pool_size * len(data.train))), (1, *data.source.shape)
        with torch.no_grad(), attack_mode(self, "eval"):
            entry = self._below(torch.zeros(image, dtype=data.dtype, device=data.device))
        self.register_buffer("pool", entry.new_zeros(slots, *entry.shape[1:]))
        self.register_buffer("labels", torch.full((slots,), -1, device=data.device))
        self.register_buffer("places", torch.full((slots,), -1, device=data.device))

    def _below(self, x: Tensor) -> Tensor:
        """What the pool holds of images: their features at the layer, or they themselves."""
        if self.layer is None:
            return x
        assert isinstance(self.model, Network)
        return self.model.features(x, self.layer)

    def _above(self, entries: Tensor) -> Tensor:
        """Logits from what the pool holds."""
        if self.layer is None:
            return self.model(entries)
        assert isinstance(self.model, Network)
        return self.model.classify(self.model.continue_from(entries, self.layer + 1))

    def _renewed(self) -> Tensor:
        """The slots that this step is to renew."""
        clock, slots = self.clock, len(self.pool)
        order = torch.randperm(slots, generator=generator("cpu", clock.seed, "szegedy", clock.epoch))
        count = round(self.renewal * slots)
        return order[count * clock.step // clock.steps : count * (clock.step + 1) // clock.steps].to(self.pool.device)

    def perturb(self, batch: Batch) -> Batch:
        draws = self.rng("pool").uniform(batch.x[:, 0, 0, 0])
        slots = ((draws + 1) / 2 * len(self.pool)).long().clamp_max(len(self.pool) - 1)
        rows = self.subset_mask(batch, self.share) & (self.places[slots] >= 0)
        made, labels = self._search(batch)
        y = torch.where(rows, self.labels[slots], batch.y)
        return replace(batch, y=y, aux={"rows": rows, "slots": slots, "made": made, "labels": labels})

    def _search(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """New entries for as many rows as there are slots to renew, shaped as the batch, and the labels of those that
        were found; −1 elsewhere.
        """
        made, labels = self.pool.new_zeros(len(batch), *self.pool.shape[1:]), torch.full_like(batch.y, -1)
        rows = self.subset_mask(batch, len(self._renewed()) / (len(batch) * self.clock.world))
        if rows.any():
            low, high = (0.0, 1.0) if self.layer is None else (-math.inf, math.inf)
            with attack_mode(self, self.attack.bn):
                with torch.no_grad():
                    nearest = NearestAdversarial(self.search.ball, self._below(batch.x[rows]))
                self.search.search(self._above, nearest, batch.y[rows], low, high)
            made[rows] = nearest.image.to(made.dtype)
            labels[rows] = torch.where(nearest.distance.isfinite(), batch.y[rows], -1)
        return made, labels

    def loss(self, batch: Batch) -> Loss:
        rows = batch.aux["rows"]
        clean = self._below(batch.x[~rows])
        mixed = clean.new_empty(len(batch), *clean.shape[1:])
        mixed[~rows], mixed[rows] = clean, self.pool[batch.aux["slots"][rows]].to(clean.dtype)
        logits = self._above(mixed)
        return Loss(self.risk(logits, batch.y).mean(), {}, logits)

    def after_update(self, batch: Batch) -> None:
        labels = self.gather(batch.aux["labels"])
        found = labels >= 0
        slots = self._renewed()[: int(found.sum())]
        self.pool[slots] = self.gather(batch.aux["made"])[found]
        self.labels[slots], self.places[slots] = labels[found], self.gather(batch.index)[found]

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # L-BFGS chooses its own

    def single_step(self) -> bool:
        return False
