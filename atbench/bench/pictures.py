"""Pictures that a network can learn: ten classes, each a smooth pattern, with noise upon it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from atbench.data import Images, Source


def pictures(shape: tuple[int, int, int], count: int, validation: int = 10) -> Source:
    """A data set of `count` pictures to train on and as many to test on, always the same."""
    channels, height, width = shape
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(10, channels, 4, 4, generator=rng)
    patterns = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)

    def draw() -> Images:
        y = torch.arange(count) % 10
        noisy = patterns[y] + 0.15 * torch.randn(count, *shape, generator=rng)
        return Images((255 * noisy.clamp(0, 1)).round().to(torch.uint8), y)

    train, test = draw(), draw()
    classes = tuple(str(number) for number in range(10))
    return Source("pictures", train, lambda: test, classes, (0.5,) * channels, (0.25,) * channels, validation)
