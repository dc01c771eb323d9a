"""Groups of parameters: rates, decay, clipping."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from atbench.training.param_groups import make_group
from atbench.training.schedules import Piecewise

SGD = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def step_without_gradient(decay: str) -> dict[str, float]:
    """How much every parameter shrinks under weight decay alone."""
    model = network()
    nn.init.ones_(model[1].weight)
    nn.init.ones_(model[1].bias)
    group = make_group("model", model, SGD, Piecewise([], 0.1), decay)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    group.optimizer.step()
    return {name: float((value.detach() / before[name]).mean()) for name, value in model.named_parameters()}


def test_decay_of_all_and_of_weights_alone() -> None:
    assert all(ratio == pytest.approx(0.95) for ratio in step_without_gradient("all").values())
    spared = step_without_gradient("weights")
    assert {name for name, ratio in spared.items() if ratio == pytest.approx(0.95)} == {"0.weight", "3.weight"}
    assert {name for name, ratio in spared.items() if ratio == 1} == {"0.bias", "1.weight", "1.bias", "3.bias"}
    kernels = step_without_gradient("convolutions")
    assert kernels.pop("0.weight") == pytest.approx(0.95) and set(kernels.values()) == {1}


def test_rate_is_the_optimizers_times_the_schedule_and_does_not_compound() -> None:
    group = make_group("model", network(), SGD, Piecewise([0.5], 0.1), "all")
    for _ in range(3):
        group.set_rate(0.6)
        assert group.rate == pytest.approx(0.01)
    group.set_rate(0.1)
    assert group.rate == pytest.approx(0.1)


def test_a_parameter_without_gradient_is_left_alone_to_the_bit() -> None:
    model = network()
    group = make_group("model", model, functools.partial(SGD, momentum=0.9), Piecewise([], 0.1), "all")
    before = model[3].weight.detach().clone()
    model[0](torch.rand(1, 1, 4, 4)).sum().backward()
    group.optimizer.step()
    assert torch.equal(before, model[3].weight)
    group.optimizer.zero_grad()  # as the training step does
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clip_bounds_the_norm_of_the_whole_group() -> None:
    model = network()
    group = make_group("model", model, SGD, Piecewise([], 0.1), "weights")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    group.clip(0.5)
    total = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    assert float(total.norm()) == pytest.approx(0.5, rel=1e-4)
