"""Whole trainings, whether two of them did the same, and a device that is too small for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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


class SmallDevice:
    """A device that is too small for more than `rows` images; `skip`: so many passes fit, because others left room."""

    def __init__(self, network: nn.Module, rows: int, skip: int = 0) -> None:
        self.rows, self.skip, self.refused = rows, skip, 0
        network.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) <= self.rows:
            return
        self.skip -= 1
        if self.skip < 0:
            self.refused += 1
            if inputs[0].is_cuda:
                torch.empty(1 << 50, dtype=torch.uint8, device=inputs[0].device)  # raises what the device raises
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
