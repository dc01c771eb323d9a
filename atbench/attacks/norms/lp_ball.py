"""Norm balls B(0, ε), the sets of allowed perturbations, for three norms.

The box [0, 1] of legal pixels is part of the threat model: every projection returns a point of the ball *and* of the
box. `eps` is a number or one value per example; images are (B, C, H, W) in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from atbench.attacks.norms.l1_projection import project_l1, project_l1_box
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws, ExampleDraws

#: Share of pixels that share an L1 step (SLIDE, Tramèr & Boneh 2019, NeurIPS, arXiv 1904.13000, sec. 4).
SLIDE = 0.01

Radius = float | Tensor
Random = Draws | ExampleDraws


def per_example(value: Radius, x: Tensor) -> Tensor:
    """`value` as a tensor that broadcasts over the pixels of `x`."""
    # A number is written by the device: to copy it there would wait, and cannot be captured.
    value = value.to(x) if isinstance(value, Tensor) else x.new_full((), value)
    return value if value.ndim == 0 else value.view(-1, *[1] * (x.ndim - 1))


def clip(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """`x` clipped to [low, high], with gradient 1 where low ≤ x ≤ high, bounds included, and 0 outside.

    `Tensor.clamp` is that only up to torch 2.12: from 2.15 on its gradient at the bounds is 0, and black and white
    pixels are frozen wherever a gradient goes through the box. TensorFlow's clip_by_value, and the torch that the
    papers were run on, pass it.
    """
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


def flat_norm(delta: Tensor, p: float) -> Tensor:
    """(B, 1, 1, 1): the p-norm of each example."""
    return delta.flatten(1).norm(p=p, dim=1).view(-1, *[1] * (delta.ndim - 1))


class Ball(ABC):
    """A norm ball around each image, cut by the box."""

    p: float

    @abstractmethod
    def project(self, x: Tensor, x_adv: Tensor, eps: Radius) -> Tensor:
        """A point with ‖x_adv − x‖_p ≤ ε and pixels in [0, 1]; `x_adv` itself where it already is one. A new tensor."""

    def projector(self, x: Tensor, eps: Radius) -> Callable[[Tensor], Tensor]:
        """`project` around one x and ε (a number or (B, 1, 1, 1)), for a loop: bounds are computed once."""
        return lambda x_adv: self.project(x, x_adv, eps)

    @abstractmethod
    def shrink(self, delta: Tensor, eps: Radius) -> Tensor:
        """The nearest perturbation with ‖δ‖_p ≤ ε, whatever the pixels: for methods that keep a δ and no image."""

    @abstractmethod
    def steepest(self, grad: Tensor) -> Tensor:
        """The direction d with ‖d‖_p = 1 that raises the linearised objective ⟨grad, d⟩ most (or a sparse stand-in for
        L1).
        """

    def ascend(self, x_adv: Tensor, grad: Tensor, length: Radius) -> Tensor:
        """`x_adv` a step of `length` (a number or (B, 1, 1, 1)) along the steepest direction. A new tensor."""
        return self.steepest(grad).mul_(length).add_(x_adv)

    @abstractmethod
    def sample(self, x: Tensor, eps: Radius, rng: Random) -> Tensor:
        """A random perturbation of the ball, before the box."""

    def norm(self, delta: Tensor) -> Tensor:
        """(B,): ‖δ‖_p of each example."""
        return delta.flatten(1).norm(p=self.p, dim=1)


class Linf(Ball):
    """|δ_j| ≤ ε. Ball and box are both boxes, so one clamp is the exact joint projection."""

    p = float("inf")

    def project(self, x: Tensor, x_adv: Tensor, eps: Radius) -> Tensor:
        return self.projector(x, per_example(eps, x))(x_adv)

    def projector(self, x: Tensor, eps: Radius) -> Callable[[Tensor], Tensor]:
        return partial(torch.clamp, min=(x - eps).clamp_(min=0), max=(x + eps).clamp_(max=1))

    def ascend(self, x_adv: Tensor, grad: Tensor, length: Radius) -> Tensor:
        return grad.sign().mul_(length).add_(x_adv)

    def shrink(self, delta: Tensor, eps: Radius) -> Tensor:
        eps = per_example(eps, delta)
        return torch.clamp(delta, -eps, eps)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def sample(self, x: Tensor, eps: Radius, rng: Random) -> Tensor:
        """U(-ε, ε) in every pixel (Madry et al. 2018)."""
        return rng.uniform(x) * per_example(eps, x)


class L2(Ball):
    """‖δ‖₂ ≤ ε. Ball and box one after the other, which is legal in either order: clipping never lengthens δ, and what
    is shrunk towards x stays in the box. Neither is the exact joint projection; with `box_first` δ is longer.
    """

    p = 2.0

    def __init__(self, box_first: bool = False) -> None:
        self.box_first = box_first

    def project(self, x: Tensor, x_adv: Tensor, eps: Radius) -> Tensor:
        x_adv = x_adv.clamp(0, 1) if self.box_first else x_adv
        return (x + self.shrink(x_adv - x, eps)).clamp_(0, 1)

    def shrink(self, delta: Tensor, eps: Radius) -> Tensor:
        length, eps = flat_norm(delta, 2), per_example(eps, delta)
        return delta * torch.where(length > eps, eps / length.clamp_min(1e-12), torch.ones_like(length))

    def steepest(self, grad: Tensor) -> Tensor:
        return grad / flat_norm(grad, 2).clamp_min(1e-12)

    def sample(self, x: Tensor, eps: Radius, rng: Random) -> Tensor:
        """Uniform in the ball: a Gaussian direction at radius ε·u^(1/d)."""
        direction = rng.normal(x)
        u = (rng.uniform(x[:, :1, :1, :1]) + 1) / 2
        return per_example(eps, x) * u ** (1 / x[0].numel()) * direction / flat_norm(direction, 2).clamp_min(1e-12)


class L1(Ball):
    """‖δ‖₁ ≤ ε, with the joint projection on ball and box (Croce & Hein 2021, "Mind the box", Prop. 2.1).

    The exact steepest step moves a single pixel. `sparsity` names the share of pixels that share the step instead,
    those with the largest |gradient|.
    """

    p = 1.0

    def __init__(self, sparsity: float) -> None:
        self.sparsity = sparsity

    def project(self, x: Tensor, x_adv: Tensor, eps: Radius) -> Tensor:
        radius = per_example(eps, x).expand(len(x), *[1] * (x.ndim - 1)).flatten()
        return project_l1_box(x.flatten(1), x_adv.flatten(1), radius).view_as(x)

    def shrink(self, delta: Tensor, eps: Radius) -> Tensor:
        radius = per_example(eps, delta).expand(len(delta), *[1] * (delta.ndim - 1)).flatten()
        return project_l1(delta.flatten(1), radius).view_as(delta)

    def steepest(self, grad: Tensor) -> Tensor:
        flat = grad.flatten(1)
        k = max(1, round(self.sparsity * flat.shape[1]))
        rows = flat.abs().topk(k, dim=1).indices
        return torch.zeros_like(flat).scatter_(1, rows, flat.gather(1, rows).sign() / k).view_as(grad)

    def ascend(self, x_adv: Tensor, grad: Tensor, length: Radius) -> Tensor:
        """The steepest step within the box (Croce & Hein 2021, Prop. 2.2): pixels in the order of their |gradient|,
        each as far as the box and its share of the step let it, until the length is spent or no pixel is left.

        A step that ignores the box would be spent on pixels that are black or white already.
        """
        flat, point = grad.flatten(1), x_adv.flatten(1)
        k = max(1, round(self.sparsity * flat.shape[1]))
        length = per_example(length, grad)
        length = length.flatten(1) if length.ndim else length
        room = torch.where(flat > 0, 1 - point, point).clamp_min(0) * (flat != 0)
        order = flat.abs().argsort(dim=1, descending=True)
        most = torch.minimum(room, length / k).gather(1, order)
        move = torch.minimum(most, (length - (most.cumsum(dim=1) - most)).clamp_min(0))
        return (point + flat.sign() * torch.zeros_like(flat).scatter_(1, order, move)).view_as(x_adv)

    def sample(self, x: Tensor, eps: Radius, rng: Random) -> Tensor:
        """Uniform in the ball: Laplace noise e normalised to ε·u^(1/d)·e/‖e‖₁."""
        signed = rng.uniform(x)
        laplace = -signed.sign() * torch.log1p(-signed.abs().clamp(max=1 - 1e-7))
        u = (rng.uniform(x[:, :1, :1, :1]) + 1) / 2
        return per_example(eps, x) * u ** (1 / x[0].numel()) * laplace / flat_norm(laplace, 1).clamp_min(1e-12)


BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}


def ball(norm: str, sparsity: float = SLIDE, box_first: bool = False) -> Ball:
    """The ball called `linf`, `l2` or `l1`; `sparsity` is for L1 alone, `box_first` for L2."""
    if norm not in BALLS:
        raise ConfigError("attack.norm", norm, "there is no such norm", f"use one of {', '.join(BALLS)}")
    return L1(sparsity) if norm == "l1" else L2(box_first) if norm == "l2" else BALLS[norm]()
