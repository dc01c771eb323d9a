"""MixUp and CutMix: augmentation that mixes two examples and their labels.

The partner of an example is drawn from the joint batch, and loaded and augmented on its own, so that a process needs
nothing of the others and several of them together mix what one would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

from torch import Tensor

from atbench.config.ranges import Positive
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws


class Mix(ABC):
    """Mixes a batch with partners, all by the same share λ ~ Beta(α, α) of the example itself, drawn for each batch."""

    def __init__(self, alpha: Positive) -> None:
        if alpha <= 0:
            raise ConfigError("dataset.augment.alpha", alpha, "Beta(α, α) needs α above 0", "use 1.0 for a uniform λ")
        self.alpha = alpha

    def __call__(self, x: Tensor, y: Tensor, other: Tensor, theirs: Tensor, rng: Draws) -> tuple[Tensor, Tensor]:
        """Mixed images (B, C, H, W) and labels; `y` and the partners' `theirs` are shares of classes (B, K)."""
        from scipy.special import betaincinv  # a quarter of a second to import: only where it is used

        share = float(betaincinv(self.alpha, self.alpha, rng.scalar(0.0, 1.0)))  # the inverse of Beta's distribution
        mixed, kept = self.images(x, other, share, rng)
        return mixed, kept * y + (1 - kept) * theirs

    @abstractmethod
    def images(self, x: Tensor, other: Tensor, share: float, rng: Draws) -> tuple[Tensor, float]:
        """The mixed images, and the share of `x` that is in them."""


class MixUp(Mix):
    """x ← λ·x + (1 − λ)·x_partner, labels alike (Zhang et al. 2018, ICLR, arXiv 1710.09412)."""

    def images(self, x: Tensor, other: Tensor, share: float, rng: Draws) -> tuple[Tensor, float]:
        return share * x + (1 - share) * other, share


class CutMix(Mix):
    """A box of the partner, of area 1 − λ around a uniform centre, replaces that of x (Yun et al. 2019, ICCV, arXiv
    1905.04899).

    What lies outside the image is cut off, and labels are mixed by the area that is left. One box a batch, as in the
    code of Rade & Moosavi-Dezfooli for Rebuffi et al. 2021.
    """

    def images(self, x: Tensor, other: Tensor, share: float, rng: Draws) -> tuple[Tensor, float]:
        height, width = x.shape[2:]
        tall, wide = int(height * sqrt(1 - share)), int(width * sqrt(1 - share))
        row, column = int(rng.scalar(0, height)), int(rng.scalar(0, width))
        top, bottom = max(row - tall // 2, 0), min(row - tall // 2 + tall, height)
        left, right = max(column - wide // 2, 0), min(column - wide // 2 + wide, width)
        mixed = x.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)
