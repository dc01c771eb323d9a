"""Optimizers without torch's compiler: the same updates, and no import of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from atbench.training import dynamo

OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1},
    "AdamW": {"lr": 0.1, "amsgrad": True},
    "RMSprop": {"lr": 0.1, "momentum": 0.9},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_plain_step_is_the_optimizers_own(name: str) -> None:
    weights = []
    for plain in (False, True):
        parameter = nn.Parameter(torch.arange(3.0, dtype=torch.float64))
        optimizer = getattr(torch.optim, name)([parameter], **OPTIMIZERS[name])
        step = dynamo.plain_step(optimizer) if plain else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            step()
        weights.append(parameter.detach())
    assert torch.equal(*weights) and not torch.equal(weights[0], torch.arange(3.0, dtype=torch.float64))


def test_another_optimizers_step_is_its_own() -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: object = None) -> str:  # type: ignore[override]
            return "mine"

    assert dynamo.plain_step(Mine([nn.Parameter(torch.ones(1))], lr=0.1))() == "mine"


def test_no_training_imports_the_compiler() -> None:
    code = """
import sys
import torch
from functools import partial
from atbench.training import make_group
from atbench.training.cost import Count
import atbench.workflows.train
network = torch.nn.Linear(2, 1)
group = make_group("model", network, partial(torch.optim.SGD, lr=0.1, momentum=0.9), lambda fraction: 1.0, "all")
with Count() as count:
    network(torch.ones(1, 2)).sum().backward()
group.step()
group.optimizer.load_state_dict(group.state())
assert count.total > 0
heavy = {"torch._dynamo", "torchvision", "sklearn", "scipy", "matplotlib", "wandb"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
