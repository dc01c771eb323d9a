"""Adversarial distributional training, implicit and amortised."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count, NotNegative
from atbench.data import Batch, TrainData
from atbench.methods.adt_exp_am import AdtExpAm
from atbench.methods.adt_networks import Encoder, ImplicitGenerator, Reversed, draw_encoder, draw_weights
from atbench.methods.base import Loss


class AdtImpAm(AdtExpAm):
    """ADT-IMP-AM (Dong et al. 2020, NeurIPS, arXiv 2002.05999): min_θ max_φ E_z[ CE(f(x'), y) ] + λ·H(u).

    The generator makes perturbations of noise, u = tanh(G_φ(x, g₁, g₂, z)), z ~ U(−1, 1)^Z, x' = clip(x + ε·u), from
    the same gradients as in ADT-EXP-AM. u has no density that could be written down; an encoder that guesses z from u,
    q(z | u) = N(m, V) with (m, s) = E(u) and V = softplus(s), bounds its negative entropy by
    nll = mean over z and batch of [ (z − m)²/(2V) + ½ log V + ½ log 2π ].
    One joint backward pass of CE(f(x'), y) + λ·max(nll − threshold, 0) with the gradient reversed at x': θ descends
    CE, φ ascends CE and descends nll, the encoder descends nll. Generator and encoder have optimizers of their own
    (groups `generator` and `encoder`).
    Cost: 7 forward passes of the classifier a batch, 3 of the generator, 3 of the encoder.

    Source: dongyp13/Adversarial-Distributional-Training, adt_impam.py and models/generator.py, whose guards 1e-8 beside
    V are kept; nll is that of the joint batch. z enters the generator as one more channel, and sizes that were written
    for 32×32 pixels there follow from the image's here. What ADT-EXP-AM says of gradients, of the generator's width and
    of weaknesses holds.

    Args:
        entropy_weight: λ.
        entropy_threshold: the nll below which the generator's entropy is enough.
        z_dim: Z.
        generator_width: channels of the generator's first layer; None: 8 for each pixel of the image's side, up to 256.
        generator_norm: `batch`, or `none` for a generator and an encoder whose examples do not see each other.
    """

    takes_micro_batches = False
    encoder: nn.Module

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        entropy_weight: NotNegative = 1.0,
        entropy_threshold: float = 0.9,
        z_dim: Count = 64,
        generator_width: Count | None = None,
        generator_norm: str = "batch",
    ) -> None:
        super().__init__(model, attack, entropy_weight, generator_width, generator_norm)
        self.entropy_threshold, self.z_dim = entropy_threshold, z_dim

    def setup(self, data: TrainData) -> None:
        shape, norm = data.source.shape, self.generator_norm
        self.generator = ImplicitGenerator(shape, self.z_dim, self._width(data), norm).to(data.device, data.dtype)
        self.encoder = Encoder(shape, self.z_dim, norm).to(data.device, data.dtype)
        draw_weights(self.generator, data.seed)
        draw_encoder(self.encoder, data.seed)

    def groups(self) -> dict[str, nn.Module]:
        return {**super().groups(), "encoder": self.encoder}

    def loss(self, batch: Batch) -> Loss:
        z = self.rng("noise").uniform(batch.x.new_empty(len(batch), self.z_dim))
        unit = torch.tanh(self.generator(batch.aux["inputs"], z))
        nll = self.gather(surprise(z, self.encoder(unit)), differentiable=True).mean()
        logits = self.model(Reversed.apply(clip(batch.x + self.attack.eps * unit)))
        risk = self.risk(logits, batch.y).mean()
        terms = {"ce": risk.detach(), "nll": nll.detach()}
        return Loss(risk + self.entropy_weight * F.relu(nll - self.entropy_threshold), terms, logits)


def surprise(z: Tensor, encoded: Tensor) -> Tensor:
    """−log N(z; m, V) of each example as a mean over its numbers, (B,); (m, s) = `encoded` (B, 2Z), V = softplus(s)."""
    mean, spread = encoded.chunk(2, dim=1)
    variance = F.softplus(spread)
    nll = (z - mean) ** 2 / (2 * variance + 1e-8) + (variance + 1e-8).log() / 2 + math.log(2 * math.pi) / 2
    return nll.mean(dim=1)
