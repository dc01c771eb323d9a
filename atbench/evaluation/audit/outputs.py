"""What a network's outputs, state and gradients say of it before any attack is run."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from atbench.attacks import LABEL_OBJECTIVES
from atbench.data import Images, stratified_subset
from atbench.evaluation.eval_model import EvalModel
from atbench.seeding import seed_global

FORWARDS = 5  # Croce & Hein 2020 (fra31/auto-attack, checks.py) look five times as well
ALONE = 16  # examples whose logits are computed alone and in company


@dataclass(frozen=True)
class Outputs:
    """Forward passes over clean images.

    logits, labels: (n, K) and (n,) of the first pass, on the CPU.
    spread: max |z − z'| between the first of five passes and the others.
    changed: examples whose prediction differs between the five.
    company: max |z − z'| between an image in a batch of others and beside a copy of itself; NaN with a single image.
    training: modules that are in train mode after a pass, although the network was put into eval mode.
    backward: calls of autograd that one pass makes.
    """

    logits: Tensor
    labels: Tensor
    spread: float
    changed: int
    company: float
    training: list[str]
    backward: int

    @property
    def scale(self) -> float:
        """max |z|."""
        return float(self.logits.abs().max())

    @property
    def rounding(self) -> float:
        """How far two passes may differ that add the same numbers in another order: 64 units of rounding of max |z|."""
        return 64 * torch.finfo(self.logits.dtype).eps * self.scale

    @property
    def random(self) -> bool:
        """Whether the five passes differ by more than rounding."""
        return self.spread > self.rounding

    @property
    def probabilities(self) -> bool:
        """Every value in [0, 1] and every row of sum 1, up to 1e-5 (fra31/auto-attack, checks.py)."""
        z = self.logits
        return bool(((z >= -1e-5) & (z <= 1 + 1e-5)).all() and ((z.sum(dim=1) - 1).abs() <= 1e-5).all())

    @property
    def gaps(self) -> Tensor:
        """(n,): z_y − max_{k≠y} z_k."""
        return -LABEL_OBJECTIVES["margin"](self.logits, self.labels)

    @property
    def saturation(self) -> float:
        """The gap at which the softmax of every wrong class is no normal number: 87.3 in float32, 708 in float64."""
        return -math.log(torch.finfo(self.logits.dtype).tiny)


def look(eval_model: EvalModel, images: Images, rows: Tensor) -> Outputs:
    """Passes over the examples `rows`. Every process makes all of them: they are few."""
    logits, labels, spread, changed = [], [], 0.0, 0
    with eval_model.ready(), torch.no_grad():
        backward = 0
        for part in rows.split(eval_model.batch_size):
            x, y = eval_model.load(images, part)
            with counted_backward() as calls:
                first = eval_model.logits(x)
            backward = max(backward, calls())
            again = torch.stack([eval_model.logits(x) for _ in range(FORWARDS - 1)])
            spread = max(spread, float((again - first).abs().max()))
            changed += int((again.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).sum())
            logits.append(first.cpu())
            labels.append(y.cpu())
        company = _company(eval_model, images, rows[stratified_subset(torch.cat(labels), ALONE)])
        training = [name or "the network" for name, module in eval_model.network.named_modules() if module.training]
    return Outputs(torch.cat(logits), torch.cat(labels), spread, changed, company, training, backward)


def randomness(eval_model: EvalModel, images: Images) -> str | None:
    """`torch` for a network whose answers differ with the seed of torch and with nothing else, `other` for one that
    draws its numbers elsewhere, None for one that gives the same answer twice. The same on all processes.
    """
    rows = stratified_subset(images.y, ALONE)
    x, _ = eval_model.load(images, rows)
    with eval_model.ready(), torch.no_grad():
        passes = []
        for seed in (0, 0, 1, 2):
            seed_global(seed, eval_model.device)
            passes.append(eval_model.logits(x))
    rounding = 64 * torch.finfo(passes[0].dtype).eps * float(passes[0].abs().max())
    differs = [bool((each - passes[0]).abs().max() > rounding) for each in passes[1:]]
    found = torch.tensor([int(each) for each in differs], device=eval_model.device)
    unseeded, *seeded = eval_model.reduce(found).bool().tolist()
    return "other" if unseeded else "torch" if any(seeded) else None


def _company(eval_model: EvalModel, images: Images, rows: Tensor) -> float:
    if len(rows) < 2:
        return math.nan
    x, _ = eval_model.load(images, rows)
    # Beside a copy of itself, because BatchNorm in train mode refuses a batch of one.
    alone = torch.cat([eval_model.logits(one.expand(2, *one.shape[1:]).contiguous())[:1] for one in x.split(1)])
    return float((eval_model.logits(x) - alone).abs().max())


def slopes(eval_model: EvalModel, images: Images, rows: Tensor) -> Tensor | None:
    """(n,): mean |∂CE/∂x| over the pixels of each example `rows`; None if the outputs carry no gradient at all."""
    found = []
    with eval_model.ready():
        for part in rows.split(eval_model.batch_size):
            x, y = eval_model.load(images, part)
            value = LABEL_OBJECTIVES["ce"](eval_model.logits(x.requires_grad_()), y)
            if not value.requires_grad:
                return None
            grad = torch.autograd.grad(value.sum(), x)[0]
            found.append(grad.abs().flatten(1).mean(dim=1).cpu())
    return torch.cat(found)


def fingerprints(network: nn.Module) -> dict[str, str]:
    """Checksums of all parameters and buffers, those that a checkpoint leaves out included, and every module's mode."""
    found = {}
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found[name] = hashlib.sha256(raw.tobytes()).hexdigest()
    return found | {f"the mode of {name or 'the network'}": str(m.training) for name, m in network.named_modules()}


@contextmanager
def counted_backward() -> Iterator[Callable[[], int]]:
    """Count calls of `torch.autograd.grad` and `backward` in a block, by whatever name they were imported."""
    watched = (torch.autograd.grad.__code__, torch.autograd.backward.__code__)
    count = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code in watched

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield lambda: count
    finally:
        sys.setprofile(before)
