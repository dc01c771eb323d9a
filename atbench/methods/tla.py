"""Triplet loss adversarial training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch, Stream, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.models import Network, attack_mode


class Tla(Method):
    """TLA (Mao et al. 2019, NeurIPS, arXiv 1909.00900): CE(f(x'), y) + λ · T(x', a, n) + λ · T(x', p, n).

    T(u, v, w) = mean of max(0, d(u, v) − d(u, w) + m) + r · mean of h(u)² + h(v)² + h(w)², d(u, v) = 1 − |cos(h(u),
    h(v))|, h the input of the head. a is the anchor's own image, under noise from the ball; p another random image of
    its class; n, the negative, the most confusable image of another class: argmax of cos(h(x'), h(z)) over a pool of
    random images z, in eval mode and without gradient. a, p and z are clean and augmented.
    Inner: cross-entropy PGD in eval mode; the triplets are not attacked. Outer: x', a, p, n in four forwards in train
    mode, nothing detached; cross-entropy on x' alone.
    Cost: (2k + 13 + c) forward passes a batch with a pool of c batches, 3 less without `own_triplet`.

    Source: columbia/Metric_Learning_Adversarial_Robustness (train_update_fast_triplet.py, utils.py, pgd_attack_GPU.py).
    It masks images of the anchor's class by a factor 0, which is enough where features are not negative, as behind a
    ReLU; here by −∞, for other activations and Transformers give negative ones. An anchor whose pool has no other class
    has no triplets; the code takes the first image. The code rounds a to whole 8-bit values (on MNIST, where pixels go
    to 1, that would leave black and white; its settings for MNIST have no such triplet); here it is not rounded. The
    code's p goes through the class in a permuted order and may be the anchor itself; here it is drawn among the others,
    where there are any. The published figures are of a network fine-tuned from PGD-AT's: `weights=FILE` starts from
    one.
    Robust accuracy later measured by AutoAttack: 47.41 %; reported: 50.03 % (RobustBench, WRN-34-10).
    Known weaknesses: the authors warn that for small networks a large pool makes the negatives too hard.

    Args:
        triplet_weight: λ.
        margin: m.
        norm_weight: r.
        negatives: size of the pool in batches.
        own_triplet: whether there is the triplet with a; the one with p always is.
    """

    takes_micro_batches = False
    requires_hard_labels = True
    order: Tensor  # positions in the train split, sorted by class
    place: Tensor  # of each example among those of its class
    first: Tensor  # where each class starts in `order`
    count: Tensor  # examples of each class

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        triplet_weight: NotNegative = 2.0,
        margin: NotNegative = 0.03,
        norm_weight: NotNegative = 1e-3,
        negatives: Count = 10,
        own_triplet: bool = True,
    ) -> None:
        super().__init__(model, attack)
        if not isinstance(model, Network):
            why = "tla compares what one network knows before its head"
            raise ConfigError("model", type(model).__name__, why, "use a model with stages, and model.members=1")
        self.triplet_weight, self.margin, self.norm_weight = triplet_weight, margin, norm_weight
        self.negatives, self.own_triplet = negatives, own_triplet
        self.data: TrainData | None = None
        self.pool: Stream | None = None

    def setup(self, data: TrainData) -> None:
        self.data, y = data, data.train.y
        self.pool = data.stream("tla-pool", self.negatives * (data.batch_size - data.extra_size))
        order, count = y.argsort(stable=True), y.bincount()
        first = count.cumsum(0) - count
        place = torch.empty_like(order)
        place[order] = torch.arange(len(y), device=y.device) - first[y[order]]
        for name, table in (("order", order), ("place", place), ("first", first), ("count", count)):
            self.register_buffer(name, table, persistent=False)  # a function of the data: no state

    def perturb(self, batch: Batch) -> Batch:
        batch = super().perturb(batch)
        positives = [self._noisy(batch), self._another(batch)] if self.own_triplet else [self._another(batch)]
        negative, mined = self._most_confusable(batch)
        return batch.with_adv(positives=positives, negative=negative, mined=mined)

    def _noisy(self, batch: Batch) -> Tensor:
        """The anchors' own images under uniform noise from the ball."""
        noise = self.attack.ball.sample(batch.x, self.attack.eps, self.rng("tla-noise"))
        return (batch.x + noise).clamp(0, 1)

    def _another(self, batch: Batch) -> Tensor:
        """Another image of each anchor's class; the same one where the class has no other."""
        assert self.data is not None, "setup(data) comes first"
        draws = self.rng("tla-positive").uniform(torch.empty(len(batch), dtype=torch.float64, device=batch.x.device))
        count = self.count[batch.y]
        shift = 1 + ((draws + 1) / 2 * (count - 1)).long()  # 1 .. count − 1, and 1 for a class of one
        rows = self.order[self.first[batch.y] + (self.place[batch.index] + shift) % count]
        clock = self.clock
        return self.data.load(self.data.train, self.gather(rows), clock.epoch, clock.step, "tla-positive").x

    def _most_confusable(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The image of another class in the joint pool that is most like each adversarial image, (B, C, H, W), and
        whether there is one, (B,).
        """
        assert self.pool is not None, "setup(data) comes first"
        pool = self.pool.batch(self.clock.epoch, self.clock.step)
        with torch.no_grad(), attack_mode(self, "eval"):
            anchors = F.normalize(self._features(batch.x_adv), dim=1)
            # In parts of a batch: the pool needs no more memory than an update does.
            keys = torch.cat([F.normalize(self._features(z), dim=1) for z in pool.x.split(len(batch))])
        with torch.autocast(keys.device.type, enabled=False):  # bf16 could not tell the most confusable ones apart
            alike = anchors @ self.gather(keys).T
        alike = alike.masked_fill(batch.y[:, None] == self.gather(pool.y), -torch.inf)
        best, place = alike.max(dim=1)
        return self.gather(pool.x)[place], best > -torch.inf

    def _features(self, x: Tensor) -> Tensor:
        return flat(self.network.features(x))

    @property
    def network(self) -> Network:
        """The model, known to be a network with stages."""
        assert isinstance(self.model, Network)
        return self.model

    def loss(self, batch: Batch) -> Loss:
        before = self.network.features(batch.x_adv)
        logits, anchor = self.network.classify(before), flat(before)
        positives = [self._features(x) for x in batch.aux["positives"]]
        negative, mined = self._features(batch.aux["negative"]), batch.aux["mined"]
        hinges = [(hinge(anchor, positive, negative, self.margin) * mined).mean() for positive in positives]
        squares = [sum_of_squares(anchor, positive, negative).mean() for positive in positives]
        risk, triplet, norm = self.risk(logits, batch.y).mean(), torch.stack(hinges).sum(), torch.stack(squares).sum()
        terms = {"ce": risk.detach(), "triplet": triplet.detach(), "norm": norm.detach()}
        total = risk + self.triplet_weight * (triplet + self.norm_weight * norm)
        return Loss(total, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 10 + 3 * self.own_triplet + self.negatives


def flat(features: Tensor) -> Tensor:
    """(B, d), in fp32 if it was computed in less: an angle close to 0 has no digits in bf16."""
    rows = features.flatten(1)
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows


def hinge(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """(B,): by how much the negative is not farther than the positive by the margin."""
    return (distance(anchor, positive) - distance(anchor, negative) + margin).relu()


def distance(u: Tensor, v: Tensor) -> Tensor:
    """1 − |cos(u, v)| of each pair of rows."""
    return 1 - (F.normalize(u, dim=1) * F.normalize(v, dim=1)).sum(dim=1).abs()


def sum_of_squares(*features: Tensor) -> Tensor:
    """(B, d): u² + v² + w² in every dimension."""
    return torch.stack([each.square() for each in features]).sum(dim=0)
