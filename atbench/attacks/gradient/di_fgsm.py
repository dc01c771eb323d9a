"""Input diversity (DI²-FGSM): gradients at randomly shrunk and shifted copies of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atbench.attacks.base import Target
from atbench.attacks.gradient.pgd import Pgd
from atbench.attacks.losses import Objective
from atbench.config.ranges import AnyCount, Count, NotNegative, Positive, Share
from atbench.errors import ConfigError
from atbench.runs.seeding import ExampleDraws


class Diverse(Pgd):
    """DI²-FGSM: PGD along ∇_{x'} objective(f(T(x')), y) (Xie et al. 2019, arXiv 1803.06978, sec. 3.2).

    T is drawn anew for every example and step: with probability `probability` the image is shrunk (bilinear) to a side
    of ⌊rate · side⌋ up to side − 1 pixels and set on zeros at a random offset; else it is unchanged. The paper
    enlarges onto a canvas of 1.1 times the side; here the canvas keeps the size that the network was made for, as in
    torchattacks. With `momentum` it is M-DI²-FGSM.

    Success is judged on x' itself. With `return_point="first"` that is a forward pass more per step.

    Args:
        probability, rate: as above; `probability=0` or `rate=1` is PGD.
        others: those of `Pgd`.
    """

    #: Its gradients are those of f ∘ T, another function: they promise nothing of what the gradient of f must find.
    access = "transfer"

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        rel_step_size: NotNegative,
        probability: Share,
        rate: Positive,
        start: str = "zero",
        restarts: Count = 1,
        objective: str = "ce",
        momentum: NotNegative = 0.0,
        return_point: str = "first",
    ) -> None:
        super().__init__(norm, eps, steps, rel_step_size, start, restarts, objective, momentum, return_point)
        if not 0 <= probability <= 1:
            raise ConfigError("attack.probability", probability, "is no probability", "use a number from 0 to 1")
        if not 0 < rate <= 1:
            raise ConfigError("attack.rate", rate, "an image cannot be shrunk to that", "use a number in (0, 1]")
        self.probability, self.rate = probability, rate

    def objective(self, target: Target, y: Tensor, rng: ExampleDraws) -> Objective:
        # One call for the whole search: what a step draws must not depend on which examples are still searched.
        numbers = rng.at("diversity").uniform(torch.empty((len(y), self.steps, 4), device=y.device))
        return _DiverseObjective(self, target, y, (numbers + 1) / 2)


class _DiverseObjective(Objective):
    """The objective of the transformed image where a gradient is needed; outputs are those of the image itself."""

    def __init__(self, attack: Diverse, target: Target, y: Tensor, numbers: Tensor) -> None:
        super().__init__(target.logits, attack.value, y)
        self.attack, self.numbers = attack, numbers

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        if not x_adv.requires_grad:
            return super().__call__(x_adv, rows, step)
        numbers = self.numbers[:, step] if rows is None else self.numbers[rows, step]
        value, outputs = super().__call__(transform(x_adv, numbers, self.attack.probability, self.attack.rate), rows)
        if self.attack.pgd.return_point == "first":
            with torch.no_grad():
                outputs = self.network(x_adv.detach())
        return value, outputs


def transform(x: Tensor, numbers: Tensor, probability: float, rate: float) -> Tensor:
    """T(x), (B, C, H, W), differentiable in `x`. `numbers` (B, 4) from U[0, 1]: coin, size, offsets down and across."""
    coin, size, *offsets = numbers.to(x.dtype).unbind(dim=1)
    matrices = []
    for side, u in zip(x.shape[-2:], offsets, strict=True):
        least = max(1, int(rate * side))
        small = (least + size * (side - least)).floor().clamp(max=max(least, side - 1))
        small = torch.where(coin < probability, small, side)
        offset = torch.minimum((u * (side - small + 1)).floor(), side - small)
        matrices.append(shrinking(side, small, offset)[:, None])
    return matrices[0] @ x @ matrices[1].transpose(-1, -2)


def shrinking(side: int, small: Tensor, offset: Tensor) -> Tensor:
    """(B, side, side): matrices A such that A v is v, bilinearly resized to `small` pixels (B,), at `offset` (B,) on
    zeros.

    Pixel i of the small image lies at (i + ½) · side / small − ½ of the large one, and its neighbours there weigh by
    their distance. As a matrix, because the backward of an indexed resize adds in random order on CUDA.
    """
    pixels = torch.arange(side, dtype=small.dtype, device=small.device)
    local = pixels - offset[:, None]
    source = ((local + 0.5) * (side / small[:, None]) - 0.5).clamp(0, side - 1)
    weights = (1 - (source[:, :, None] - pixels).abs()).clamp_min(0)
    return weights * ((local >= 0) & (local < small[:, None]))[:, :, None]
