"""Whole trainings, and whether two of them did the same."""

from __future__ import annotations

import pytest
import torch

from atbench.training import Trainer
from tests.support.contract import ALONE, Log, trainer_of


def difference(first: Trainer, second: Trainer) -> float:
    """The largest difference of anything that training has changed."""
    ours, theirs = first.state(), second.state()
    pairs = [(value, theirs["method"][key]) for key, value in ours["method"].items()]
    for group, state in ours["optimizers"].items():
        for key, slots in state["state"].items():
            pairs += [(each, theirs["optimizers"][group]["state"][key][name]) for name, each in slots.items()]
    return max(float((torch.as_tensor(a).double() - b).abs().max()) for a, b in pairs if a is not None and b.numel())


def assert_same_training(first: tuple[Trainer, Log], second: tuple[Trainer, Log]) -> None:
    assert difference(first[0], second[0]) <= 1e-12
    for ours, theirs in zip(first[1].rows, second[1].rows, strict=True):
        assert ours["train"] == pytest.approx(theirs["train"], rel=1e-12, abs=1e-12)
        assert ours["val"] == theirs["val"]


def trained(name: str, *words: str) -> tuple[Trainer, Log]:
    log = Log()
    trainer = trainer_of(name, ALONE, log, *words)
    before = {key: value.clone() for key, value in trainer.method.state_dict().items()}
    trainer.fit()
    after = trainer.method.state_dict()
    assert max(float((after[key].double() - value).abs().max()) for key, value in before.items() if value.numel()) > 0
    return trainer, log
