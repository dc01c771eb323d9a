"""channels_last: the rule, and networks that do not run in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.errors import ConfigError
from atbench.models.memory_format import use_channels_last
from atbench.training import World
from atbench.workflows import factory
from atbench.workflows.layout import layout_warnings, wants_channels_last
from tests.support.contract import ALONE, Log, configuration, trainer_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Viewing(nn.Module):
    """A network as many write it: `.view` of what it takes to be contiguous."""

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head, self.flatten = nn.Linear(4 * 64, 10), flatten

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.conv(x)))
        return self.head(h.flatten(1) if self.flatten else h.view(len(h), -1))


class OneWay(torch.autograd.Function):
    """A function whose gradient alone needs a contiguous tensor."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.view(-1).view(grad.shape)


class ViewingBack(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(OneWay.apply(self.conv(x)).contiguous(memory_format=torch.channels_last).flatten(1))


@pytest.mark.parametrize(("layout", "on"), [("auto", True), ("true", True), ("false", False)])
def test_it_is_on_unless_it_is_turned_off(layout: str, on: bool) -> None:
    assert wants_channels_last(configuration("pgd_at", f"train.channels_last={layout}")) is on
    assert trainer_of("pgd_at", World(CPU), Log(), f"train.channels_last={layout}").recipe.channels_last is on


@pytest.mark.parametrize(("network", "runs"), [(Viewing(), False), (Viewing(flatten=True), True)])
def test_trying_it_leaves_no_trace(network: nn.Module, runs: bool) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers, modes = torch.get_rng_state(), [module.training for module in network.modules()]
    assert use_channels_last(network, network, (1, 8, 8), required=False) is runs
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [module.training for module in network.modules()] == modes
    layout = torch.channels_last if runs else torch.contiguous_format
    assert all(p.is_contiguous(memory_format=layout) for p in network.parameters() if p.ndim == 4)


def test_a_network_that_views_is_refused_where_the_layout_was_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"train\.channels_last: True .*view size is not compatible"):
        use_channels_last(network := Viewing(), network, (1, 8, 8), required=True)


def test_auto_falls_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configuration("pgd_at")
    for flatten in (False, True):
        monkeypatch.setattr(factory, "make_model", lambda cfg, source, flatten=flatten: Viewing(flatten=flatten))
        trainer = trainer_of("pgd_at", ALONE, Log())
        assert trainer.recipe.channels_last is flatten and len(layout_warnings(cfg, trainer)) == (not flatten)
        trainer.train_batch()
        layout = torch.channels_last if flatten else torch.contiguous_format
        assert trainer.method.model.conv.weight.is_contiguous(memory_format=layout)
