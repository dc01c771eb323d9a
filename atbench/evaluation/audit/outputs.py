"""Measurements of a network's outputs, gradients and state for the audit, without any attack."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atbench.attacks import LABEL_OBJECTIVES
from atbench.data import Images, stratified_subset
from atbench.evaluation.eval_model import EvalModel
from atbench.runs.seeding import seed_global

FORWARDS = 5  # Croce & Hein 2020 (fra31/auto-attack, checks.py) look five times as well
ALONE = 16  # examples whose logits are computed alone and in a batch


@dataclass(frozen=True)
class Outputs:
    """Forward passes over clean images.

    logits, labels: (n, K) and (n,) of the first pass, on the CPU.
    spread: max |z − z'| between the first of five passes and the others.
    changed: examples whose prediction differs between the five.
    batch_dependence: max |z − z'| between an image in a batch of others and beside a copy of itself; NaN with a single
        image.
    training: modules that are in train mode after a pass, although the network was put into eval mode.
    backward: calls of autograd that one pass makes.
    """

    logits: Tensor
    labels: Tensor
    spread: float
    changed: int
    batch_dependence: float
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


def measure_outputs(eval_model: EvalModel, images: Images, rows: Tensor) -> Outputs:
    """Forward passes over the examples `rows`; every process makes all of them, for they are few."""
    logits, labels, spread, changed = [], [], 0.0, 0
    with eval_model.ready(), torch.no_grad():
        backward = 0
        for part in rows.split(eval_model.batch_size):
            x, y = eval_model.load(images, part)
            with count_backward_calls() as calls:
                first = eval_model.logits(x)
            backward = max(backward, calls())
            again = torch.stack([eval_model.logits(x) for _ in range(FORWARDS - 1)])
            spread = max(spread, float((again - first).abs().max()))
            changed += int((again.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).sum())
            logits.append(first.cpu())
            labels.append(y.cpu())
        batch_dependence = _batch_dependence(eval_model, images, rows[stratified_subset(torch.cat(labels), ALONE)])
        training = [name or "the network" for name, module in eval_model.network.named_modules() if module.training]
    return Outputs(torch.cat(logits), torch.cat(labels), spread, changed, batch_dependence, training, backward)


def randomness_source(eval_model: EvalModel, images: Images) -> str | None:
    """Random source of a network: `torch` if its outputs differ with torch's seed and with nothing else, `other` if it
    draws its numbers elsewhere, None if it is deterministic. The same on all processes.
    """
    rows = stratified_subset(images.y, ALONE)
    x, _ = eval_model.load(images, rows)
    with eval_model.ready(), torch.no_grad():
        passes = []
        for seed in (0, 0, 1, 2):
            seed_global(seed, eval_model.device)
            passes.append(eval_model.logits(x))
    rounding = 64 * torch.finfo(passes[0].dtype).eps * float(passes[0].abs().max())
    differs = torch.tensor([int((z - passes[0]).abs().max() > rounding) for z in passes[1:]], device=eval_model.device)
    unseeded, *seeded = eval_model.reduce(differs).bool().tolist()
    return "other" if unseeded else "torch" if any(seeded) else None


def _batch_dependence(eval_model: EvalModel, images: Images, rows: Tensor) -> float:
    if len(rows) < 2:
        return math.nan
    x, _ = eval_model.load(images, rows)
    # Beside a copy of itself, because BatchNorm in train mode refuses a batch of one.
    alone = torch.cat([eval_model.logits(each.expand(2, *each.shape[1:]).contiguous())[:1] for each in x.split(1)])
    return float((eval_model.logits(x) - alone).abs().max())


def gradient_magnitudes(eval_model: EvalModel, images: Images, rows: Tensor) -> Tensor | None:
    """(n,): mean |∂CE/∂x| over the pixels of each example `rows`; None if the outputs carry no gradient at all."""
    magnitudes = []
    with eval_model.ready():
        for part in rows.split(eval_model.batch_size):
            x, y = eval_model.load(images, part)
            value = LABEL_OBJECTIVES["ce"](eval_model.logits(x.requires_grad_()), y)
            if not value.requires_grad:
                return None
            grad = torch.autograd.grad(value.sum(), x)[0]
            magnitudes.append(grad.abs().flatten(1).mean(dim=1).cpu())
    return torch.cat(magnitudes)


def state_checksums(network: nn.Module) -> dict[str, str]:
    """Checksums of all parameters and buffers, non-persistent ones included, and every module's mode."""
    checksums = {}
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        checksums[name] = hashlib.sha256(raw.tobytes()).hexdigest()
    return checksums | {f"the mode of {name or 'the network'}": str(m.training) for name, m in network.named_modules()}


@contextmanager
def count_backward_calls() -> Iterator[Callable[[], int]]:
    """Count backward passes in a block: calls of `torch.autograd.grad` and `backward`, whatever name they go by."""
    count, run = 0, torch.autograd._engine_run_backward  # what both call; their own names may be imported elsewhere

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return run(*args, **options)

    torch.autograd._engine_run_backward = counted
    try:
        yield lambda: count
    finally:
        torch.autograd._engine_run_backward = run
