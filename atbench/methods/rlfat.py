"""Robust local features: adversarial training on images whose blocks are shuffled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch
from atbench.methods.base import Clock, Loss, Method
from atbench.methods.divergences import kl_divergence
from atbench.methods.trades import Trades
from atbench.runs.seeding import generator


class Rlfat(Method):
    """RLFAT_P (Song et al. 2020, ICLR, arXiv 1909.10147): CE(f(s(x')), y) + η · ‖f(s(x')) − f(x')‖².

    s, random block shuffle: cut the image into strips at uniform rows, permute them, then the same with columns; one
    draw for the whole batch. What is left of a shuffled image are its local features, on which the first term trains;
    the second hands them on to the whole image. With two strips an axis stays as it is every second time, and the image
    every fourth. Inner: cross-entropy PGD on the unshuffled image. Outer: mean cross-entropy, and the squared distance
    of the logits, summed over classes and averaged over the batch, with gradient through both sides; two forwards.
    Cost: (2k + 6) forward passes a batch.

    Paper and code: the paper speaks of features (from memory), JHL-HUST/RLFAT (cifar_10/train_pgdat_RLFAT.py, utils.py)
    compares logits, and so is done here. The code attacks in train mode, and every pass moves the running statistics
    (`attack.bn=train` in the YAML).
    Known weaknesses: no AutoAttack figure is known; the paper's 53.97 % under PGD at ε = 0.03 against 46.19 % for
    PGD-AT (from memory) compares trainings by Adam without crops, and may not hold against a tuned one.

    Args:
        transfer: η.
        blocks: strips an axis; 1 shuffles nothing and is PGD-AT.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, transfer: NotNegative = 0.5, blocks: Count = 2
    ) -> None:
        super().__init__(model, attack)
        self.transfer, self.blocks = transfer, blocks

    def loss(self, batch: Batch) -> Loss:
        shuffled = self.model(block_shuffle(batch.x_adv, self.blocks, self.clock))
        whole = self.model(batch.x_adv)
        risk, gap = self.risk(shuffled, batch.y).mean(), squared_distance(shuffled, whole)
        terms = {"ce": risk.detach(), "transfer": gap.detach()}
        return Loss(risk + self.transfer * gap, terms, shuffled)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 6


class RlfatTrades(Trades):
    """RLFAT_T (Song et al. 2020): CE(f(x), y) + β · KL(f(x) ‖ f(s(x'))) + η · ‖f(s(x')) − f(x')‖².

    TRADES with its KL to the shuffled adversarial image; s and the last term, of logits, as in `Rlfat`. Inner: TRADES'
    own, the KL to the unshuffled x'. Three forwards: clean, shuffled, whole. Cost: (2k + 10) forward passes a batch.

    Source: JHL-HUST/RLFAT, cifar_10/train_trades_RLFAT.py and trade_attack.py: p(x) once an attack, in train mode as
    all else. Its KL is Keras', which clips probabilities at 1e-7; here it is not clipped.
    Known weaknesses: as `Rlfat`; 58.75 % under PGD against 50.95 % for TRADES (from memory).

    Args:
        beta: β.
        transfer: η.
        blocks: strips an axis; 1 shuffles nothing and is TRADES.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        beta: NotNegative = 6.0,
        transfer: NotNegative = 1.0,
        blocks: Count = 2,
    ) -> None:
        super().__init__(model, attack, beta)
        self.transfer, self.blocks = transfer, blocks

    def loss(self, batch: Batch) -> Loss:
        clean = self.model(batch.x)
        shuffled = self.model(block_shuffle(batch.x_adv, self.blocks, self.clock))
        whole = self.model(batch.x_adv)
        natural = self.risk(clean, batch.y).mean()
        boundary = kl_divergence(clean, shuffled).mean()
        gap = squared_distance(shuffled, whole)
        terms = {"ce": natural.detach(), "kl": boundary.detach(), "transfer": gap.detach()}
        total = natural + self.beta * boundary + self.transfer * gap
        return Loss(total, terms, shuffled)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 10


def block_shuffle(x: Tensor, blocks: int, clock: Clock) -> Tensor:
    """Random block shuffle of a batch: a permutation of its rows and one of its columns, the same on every process."""
    source = generator("cpu", clock.seed, "rlfat", clock.epoch, clock.step, clock.round)
    rows, columns = (strips(size, blocks, source).to(x.device) for size in x.shape[2:])
    return x.index_select(2, rows).index_select(3, columns)


def strips(size: int, blocks: int, source: torch.Generator) -> Tensor:
    """0 .. size−1 cut at `blocks` − 1 uniform places, which may coincide or be 0, the strips in a random order."""
    cuts = torch.randint(size, (blocks - 1,), generator=source).sort().values
    parts = torch.arange(size).tensor_split(cuts)
    return torch.cat([parts[i] for i in torch.randperm(blocks, generator=source).tolist()])


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the batch of ‖a − b‖², summed over classes."""
    return (a - b).square().sum(dim=1).mean()
