"""Base class of classifiers: images in [0, 1] in, logits out, normalisation inside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice
from math import log

import torch
from torch import Tensor, nn

from atbench.errors import ConfigError

Shape = tuple[int, int, int]  # channels, height, width
STANDARDS = ("dataset", "image")
SMALL = 64  # pixels a side up to which a stem keeps the image's size: CIFAR, SVHN, Tiny ImageNet


def sequential(**modules: nn.Module) -> nn.Sequential:
    """nn.Sequential of named modules; the names are those of the state dict."""
    return nn.Sequential(OrderedDict(modules))


def require_side(shape: Shape, side: int, name: str) -> None:
    """Raise ConfigError for images that the network `name` would shrink to nothing."""
    _, height, width = shape
    if min(height, width) < side:
        why = f"images of {height}×{width} pixels are too small"
        raise ConfigError("model", name, why, f"use at least {side}×{side}, or another model")


def has_large_stem(stem: str, shape: Shape) -> bool:
    """Whether the network starts with a 7×7 convolution of stride 2 and a pool (ImageNet) or a 3×3 one (CIFAR)."""
    if stem not in ("auto", "small", "large"):
        raise ConfigError("model.stem", stem, "there is no such stem", "use one of auto, small, large")
    return stem == "large" or (stem == "auto" and min(shape[1:]) > SMALL)


class Network(nn.Module):
    """`forward = head(features(x))`, with `features` a sequence of stages over normalised pixels.

    Args:
        stages: stem, blocks, pooling, in order. A stage ends before an activation, so that a cut between two stages
            gives pre-activation features (networks whose blocks join rectified branches, such as Inception, cannot);
            stage 0 is a single linear layer without normalisation (YOPO splits there).
        head: the classifier on pooled features (B, d) → (B, K).
        mean, std: per-channel normalisation of [0, 1] pixels.
        standardise: by these numbers of the data set (`dataset`), or every image by its own (`image`).
    """

    mean: Tensor
    std: Tensor
    #: Of torchvision's networks: a key in a state dict of torchvision's → the key in ours.
    published: Mapping[str, str] | None = None

    def __init__(
        self,
        stages: nn.Sequential,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        standardise: str = "dataset",
    ) -> None:
        super().__init__()
        if standardise not in STANDARDS:
            known = " or ".join(STANDARDS)
            raise ConfigError("model.standardise", standardise, "there is no such choice", f"use {known}")
        self.per_image = standardise == "image"
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.stages, self.head = stages, head

    @property
    def depth(self) -> int:
        return len(self.stages)

    def features(self, x: Tensor, upto: int | None = None) -> Tensor:
        """Output of the stages 0..upto (all, if None) for images `x` in [0, 1]."""
        return self.continue_from(self.normalise(x), 0, upto)

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std per channel, or of each image over all its pixels and channels."""
        return per_image_standardize(x) if self.per_image else (x - self.mean) / self.std

    def continue_from(self, h: Tensor, first: int, upto: int | None = None) -> Tensor:
        """Run `h`, the input of stage `first`, through the stages first..upto."""
        last = self.depth if upto is None else upto + 1
        for stage in islice(self.stages, first, last):  # a slice would be a new module in every pass
            h = stage(h)
        return h

    def classify(self, features: Tensor) -> Tensor:
        """Logits from the last stage's output, in fp32 whatever the features were computed in."""
        logits: Tensor = self.head(features)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def per_image_standardize(x: Tensor) -> Tensor:
    """(z − mean) / max(std, 1/√n) of each image, z = 255·x its n values, std² their variance over n:
    TensorFlow's per_image_standardization (Madry et al. 2018 on CIFAR-10, and what was made from their code).

    BorealisAI/advertorch, in MMA, has the floor 1/√n on x itself and the variance over n − 1. Images see that floor
    where the std of z is below 255/√n, 4.6 for 32×32×3.
    """
    axes, pixels = tuple(range(1, x.ndim)), 255 * x
    least = 1 / x[0].numel()
    deviation = pixels.var(axes, correction=0, keepdim=True).clamp_min(least).sqrt()
    return (pixels - pixels.mean(axes, keepdim=True)) / deviation


class Ensemble(nn.Module):
    """Several networks as one, whose softmax is the mean of theirs: z = log mean softmax(z_m) + mean logsumexp(z_m).

    The second term is the same for all classes: it changes no probability, no loss of them and no gradient of such a
    loss, and gives the logits the size of the members'. Without it they would be log-probabilities, and what methods
    say of logits themselves (their norm, their distance) would be said of something else; members that are all alike
    are the ensemble. An attack differentiates through this, not through mean logits. Source: zjysteven/DVERGE,
    models/ensemble.py, which has the first term alone and clamps the probabilities; logsumexp needs no clamp.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(torch.stack([member(x) for member in self.members]))

    @staticmethod
    def combine(logits: Tensor) -> Tensor:
        """z (B, K) from the logits of the members (M, B, K)."""
        size = logits.logsumexp(dim=2, keepdim=True)
        return (logits - size).logsumexp(dim=0) - log(len(logits)) + size.mean(dim=0)
