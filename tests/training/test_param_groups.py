"""Groups of parameters: rates, decay, clipping."""

from __future__ import annotations

import functools
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.training.param_groups import Group, fused_on_cuda, make_group
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


ON_CUDA: Any = [SimpleNamespace(is_cuda=True)]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_one_kernel_updates_all_parameters_on_cuda(optimizer: type[torch.optim.Optimizer]) -> None:
    make = functools.partial(optimizer, lr=0.1)
    assert fused_on_cuda(make, ON_CUDA).keywords == {"lr": 0.1, "fused": True}
    assert fused_on_cuda(make, [*ON_CUDA, SimpleNamespace(is_cuda=False)]) is make
    for own in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}):
        configured = functools.partial(optimizer, lr=0.1, **own)
        assert fused_on_cuda(configured, ON_CUDA) is configured
    optimizer([nn.Parameter(torch.zeros(2))], lr=0.1, fused=True)  # torch takes the argument


def test_other_optimizers_and_dampening_are_left_alone() -> None:
    for make in (functools.partial(torch.optim.RMSprop, lr=0.1), functools.partial(SGD, momentum=0.9, dampening=0.5)):
        assert fused_on_cuda(make, ON_CUDA) is make


def fused(layout: torch.memory_format = torch.contiguous_format, **options: Any) -> Group:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)).to(memory_format=layout)
    make = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, **options)
    return make_group("model", model, make, Piecewise([], 0.1), "all")


def steps(group: Group, numbers: range) -> list[Tensor]:
    """Steps in which the first layer has no gradient until the third."""
    for number in numbers:
        for place, parameter in enumerate(group.parameters()):
            seed = torch.Generator().manual_seed(10 * number + place)
            value = torch.empty(parameter.shape).normal_(generator=seed)
            parameter.grad = torch.empty_like(parameter).copy_(value) if place > 1 or number > 2 else None
        group.optimizer.step()
    return [parameter.detach().clone(memory_format=torch.contiguous_format) for parameter in group.parameters()]


def test_fused_sgd_takes_the_first_gradient_whenever_it_comes() -> None:
    """Torch's fused kernel fails where some parameters have a momentum and others, without gradient so far, do not."""
    for ours, plain in zip(steps(fused(fused=True), range(5)), steps(fused(), range(5)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kernels", [{"fused": True}, {}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_resumed_optimizer_is_bit_equal(kernels: dict[str, bool], layout: torch.memory_format) -> None:
    whole, first = fused(layout, **kernels), fused(layout, **kernels)
    expected = steps(whole, range(6))
    steps(first, range(3))
    found = steps(resumed(first, layout, **kernels), range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_state_goes_on_in_another_layout() -> None:
    """Kernels that walk memory would give each weight the momentum of another."""
    first = fused(fused=True)
    steps(first, range(3))
    other = resumed(first, torch.channels_last, fused=True)
    for parameter in other.parameters():
        assert other.optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    for found, expected in zip(steps(other, range(3, 6)), steps(first, range(3, 6)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def resumed(first: Group, layout: torch.memory_format, **options: Any) -> Group:
    group = fused(layout, **options)
    for own, other in zip(group.parameters(), first.parameters(), strict=True):
        own.detach().copy_(other)
    group.load(deepcopy(first.state()))
    return group


def test_the_optimizer_that_is_there_says_how_it_updates() -> None:
    """A state of CUDA's, fused, goes on with what a CPU was configured for, and the other way round."""
    plain, quick = fused(), fused(fused=True)
    steps(plain, range(2))
    quick.load(plain.state())
    assert all(group["fused"] for group in quick.optimizer.param_groups)
    assert all("momentum_buffer" in quick.optimizer.state[parameter] for parameter in quick.parameters())
    steps(quick, range(2, 4))
    plain.load(quick.state())
    assert not any(group["fused"] for group in plain.optimizer.param_groups)
