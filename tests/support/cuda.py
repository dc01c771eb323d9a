"""Trainings of a few steps on a CUDA device, and the marks of tests that need one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.training import Trainer
from scripts.gpu.parity import OneStep
from scripts.gpu.trainers import configuration, few_digits, fit, make_trainer

DEVICE = torch.device("cuda")
WORDS = ("dataset=digits", "model.width=8", "attack.steps=3", "train.batch_size=16", "train.epochs=4")
NEEDS_CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


class After(OneStep):
    """A watch that ends training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self) -> int:
        self.steps -= 1
        return 0 if self.steps else 75


def begun(*words: str, steps: int = 1) -> Trainer:
    """A trainer at its beginning, which trains for so many steps."""
    return make_trainer(configuration(*WORDS, *words), few_digits(), DEVICE, After(steps))


def trained(steps: int, *words: str, state: dict[str, Any] | None = None) -> Trainer:
    """A trainer after so many steps, from the state of another if one is given."""
    trainer = begun(*words, steps=steps)
    if state is not None:
        trainer.load(state)
    fit(trainer)
    return trainer
