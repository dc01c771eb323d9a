"""Whether a device computes what the CPU computes: one training step of every method, in float32 and float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atbench.config.registry import conf_dir, entries
from atbench.data import Batch
from atbench.methods import Loss
from atbench.training.callbacks import Silent
from scripts.gpu.session import Session
from scripts.gpu.trainers import configuration, few_digits, fit, make_trainer, same_draws

WORDS = (
    "dataset=digits",
    "model.width=8",
    "attack.steps=3",
    "train.batch_size=32",
    "train.epochs=2",
    "train.optimizer.lr=0.02",
    "train.channels_last=false",
)
OWN = dict.fromkeys(("adt_exp_am", "adt_imp_am"), ("method.generator_width=8",))
TYPES = {"float32": torch.float32, "float64": torch.float64}
#: What float64 has to keep: relative difference of the loss and of the weights, and the share of pixels that differ.
BOUNDS = {"loss": 1e-8, "weights": 1e-6, "pixels": 1e-3}
PIXEL = 1e-5  # from here on a pixel differs


@dataclass
class Step:
    """What one training step passed through, on the CPU: state before and after, losses and inner images by round."""

    before: dict[str, Tensor]
    after: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)


class OneStep(Silent):
    """A watch that ends training after its first step."""

    def __call__(self) -> int:
        return 75


def parity(session: Session, methods: list[str] | None = None) -> None:
    """Compare every method in both types."""
    names = methods or [entry["name"] for entry in entries("methods", [conf_dir()])]

    def measure(cell: str) -> dict[str, Any]:
        name, dtype = cell.split("/")
        reference = first_step(name, torch.device("cpu"), TYPES[dtype])
        return compare(reference, first_step(name, session.device, TYPES[dtype], reference.before), dtype)

    session.fill("parity", [f"{name}/{dtype}" for name in names for dtype in TYPES], measure)


def first_step(name: str, device: torch.device, dtype: torch.dtype, start: dict[str, Tensor] | None = None) -> Step:
    """A method's first step on digits; from the state `start`, for a method may draw weights on its device."""
    with default_dtype(dtype), same_draws():
        cfg = configuration(f"method={name}", *WORDS, *OWN.get(name, ()))
        trainer = make_trainer(cfg, few_digits(), device, OneStep())
        if start is not None:
            trainer.method.load_state_dict(start)
        step = Step(on_cpu(trainer.method.state_dict()))

        outer = trainer.method.loss

        def noted(batch: Batch) -> Loss:
            loss = outer(batch)
            step.losses.append(loss.total.detach().cpu())
            if batch.x_adv is not None:
                step.images.append(batch.x_adv.detach().cpu())
            return loss

        trainer.method.loss = noted
        fit(trainer)
        step.after = on_cpu(trainer.method.state_dict())
        return step


def compare(reference: Step, step: Step, dtype: str) -> dict[str, Any]:
    """Largest differences of two steps; None for inner images where the search shares its pass with the update."""
    assert len(reference.losses) == len(step.losses) > 0 and len(reference.images) == len(step.images)
    changes = [(a - b).abs() for a, b in zip(reference.images, step.images, strict=True)]
    result: dict[str, Any] = {
        "loss": max(relative(a, b) for a, b in zip(reference.losses, step.losses, strict=True)),
        "image": max((float(change.max()) for change in changes), default=None),
        "pixels": max((float((change > PIXEL).double().mean()) for change in changes), default=None),
        "weights": max(relative(value, step.after[key]) for key, value in reference.after.items() if value.numel()),
    }
    if dtype == "float64":
        result["agrees"] = all((result[key] or 0.0) <= bound for key, bound in BOUNDS.items())
    return result


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, in units of the larger of 1 and the first one's largest value."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / a.abs().max().clamp_min(1.0))


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A block with another default of floating-point numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
