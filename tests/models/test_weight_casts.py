"""Weights that are cast once an attack: the same bits with fewer casts, and nothing left behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.models import attack_mode, weight_casts
from atbench.models.preact import PreActResNet, SamePadConv2d
from tests.support.nets import build

MODES = ("eval", "batch", "train")
IMAGES, LABELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Casts(TorchDispatchMode):
    """Casts of float32 to bfloat16 by the address of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.sources[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    return build(PreActResNet, (3, 8, 8), blocks=(1, 1))


def search(net: nn.Module, mode: str, steps: int = 3) -> Tensor:
    attack = GradientAttack("linf", 8 / 255, steps, 2 / 255, start="zero")
    with bf16(), attack_mode(net, mode):
        return attack(Objective(net, cross_entropy, LABELS), IMAGES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_attack_is_bit_equal_and_casts_no_weight_again(
    mode: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, counts = [], []
    for cast in (True, False):
        net = network().to(memory_format=layout)
        weights = {parameter.data_ptr() for parameter in net.parameters()}
        if not cast:
            monkeypatch.setattr(weight_casts, "castable", lambda module: False)
        with Casts() as casts:
            results.append(search(net, mode))
        counts.append(sum(count for source, count in casts.sources.items() if source in weights))
        results.append(torch.cat([value.flatten().double() for value in net.state_dict().values()]))
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    layers = [module for module in network().modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) > 5 and counts[1] >= 3 * len(layers), "each weight in each of three passes"
    assert counts[0] == 0


def test_nothing_is_left_behind_even_after_an_error() -> None:
    net = network().train()
    before, attributes = dict(net.named_parameters()), [set(vars(module)) for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), bf16(), attack_mode(net, "eval"):
        inside = dict(net.named_parameters())
        assert all(inside[name] is parameter for name, parameter in before.items()), "parameters stay themselves"
        assert net.state_dict().keys() == state.keys()
        assert all(value.dtype == state[name].dtype for name, value in net.state_dict().items())
        raise RuntimeError("inside")
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert all(after is before[name] for name, after in net.named_parameters())
    with bf16():
        net(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters()), "no gradient is missed"


def forwards(net: nn.Module) -> list[weight_casts.CastForward]:
    found = [vars(module).get("forward") for module in net.modules()]
    return [each for each in found if isinstance(each, weight_casts.CastForward)]


def test_a_block_within_a_block_uses_the_casts_of_the_outer_one() -> None:
    net = network()
    with bf16(), attack_mode(net, "eval"):
        outer = forwards(net)
        expected = net(IMAGES)
        with attack_mode(net, "batch"):
            assert [id(each) for each in forwards(net)] == [id(each) for each in outer]
        assert [id(each) for each in forwards(net)] == [id(each) for each in outer] and outer
        assert torch.equal(net(IMAGES), expected)
    assert not forwards(net)


def test_without_autocast_or_freezing_nothing_is_cast() -> None:
    net = network()
    with attack_mode(net, "eval"):
        assert not forwards(net)
    with bf16(), attack_mode(net, "eval", freeze=False):
        assert not forwards(net)


class Odd(nn.Module):
    """Tied weights, a parametrised layer, a subclass, and a layer that is kept out of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.own, self.exact = SamePadConv2d(3, 3, 3, stride=2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.scaled(self.two(self.one(self.own(x).flatten(1)[:, :6]).relu()))
        with torch.autocast("cpu", enabled=False):
            return self.exact(h.float())


def test_tied_parametrised_and_exact_layers_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Odd()
    with bf16(), attack_mode(net, "eval"):
        cast = {id(each.layer): each for each in forwards(net)}
        assert set(cast) == {id(net.one), id(net.two), id(net.exact)}
        assert cast[id(net.one)].weight is cast[id(net.two)].weight
        ours = net(IMAGES)
    monkeypatch.setattr(weight_casts, "castable", lambda module: False)
    with bf16(), attack_mode(net, "eval"):
        assert torch.equal(ours, net(IMAGES))


def test_weights_that_move_in_the_block_are_seen() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with bf16(), attack_mode(net, "eval"):
        before = net(IMAGES)
        with torch.no_grad():
            net[1].weight.mul_(2)
        assert not torch.equal(net(IMAGES), before)
        torch.func.functional_call(net, {"1.weight": torch.zeros(2, 192), "1.bias": torch.zeros(2)}, IMAGES)
        zeros = {"1.weight": torch.zeros(2, 192), "1.bias": torch.zeros(2)}
        assert not torch.func.functional_call(net, zeros, IMAGES).any()
        net[1].weight.requires_grad_()
        net(IMAGES).sum().backward()
    assert net[1].weight.grad is not None


def test_on_cuda_casts_stay_where_a_graph_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown on a CPU: each block writes the new values to the places of the block before."""
    monkeypatch.setattr(weight_casts, "keeps_place", lambda weight: True)
    net = network()
    found = []
    for _ in range(2):
        with bf16(), attack_mode(net, "eval"):
            casts = [each.weight for each in forwards(net)]
            layers = [each.layer for each in forwards(net)]
            found.append([each.data_ptr() for each in casts])
            assert all(torch.equal(c, m.weight.bfloat16()) for c, m in zip(casts, layers, strict=True))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1)
    assert found[0] == found[1] and len(set(found[0])) > 5
    count = len(weight_casts.PLACES)
    del net, casts, layers
    assert len(weight_casts.PLACES) < count, "they go with their weights"
