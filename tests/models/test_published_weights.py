"""Published weights load by their own names: the logits are theirs, and what does not fit is said and not loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from atbench.errors import DataError
from atbench.models import Network
from atbench.models.plain import FastMnist, TradesMnist
from atbench.models.preact import WRN, PreActResNet
from atbench.models.published_weights import load_published
from atbench.models.residual import ResNet
from tests.support import foreign
from tests.support.nets import Make

F64 = torch.float64
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
PREACT = {"blocks": (2, 1)}
DEEPMIND = {"padding": "same"}

# Theirs, ours, our options, images.
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], Make, dict[str, Any], tuple[int, int, int]]] = {
    "trades_wrn": (foreign.TradesWRN, WRN, {"depth": 16, "width": 1}, CIFAR),
    "trades_wrn_wide": (lambda: foreign.TradesWRN(10, 2), WRN, {"depth": 10, "width": 2}, CIFAR),
    "dm_wrn": (foreign.DeepMindWRN, WRN, {"depth": 16, "width": 1, "activation": "silu", **DEEPMIND}, CIFAR),
    "dm_preact": (foreign.DeepMindPreAct, PreActResNet, {**PREACT, **DEEPMIND, "shortcut": "raw3x3"}, CIFAR),
    "rice_preact": (foreign.PreAct, PreActResNet, PREACT, CIFAR),
    "fast_preact": (lambda: foreign.PreAct(raw=True), PreActResNet, {**PREACT, "shortcut": "raw"}, CIFAR),
    "wong_preact": (
        lambda: foreign.PreAct(raw=True, final=False),
        PreActResNet,
        {**PREACT, "shortcut": "raw", "final_norm": False},
        CIFAR,
    ),
    "preact_bottleneck": (lambda: foreign.PreAct(True), PreActResNet, {**PREACT, "bottleneck": True}, CIFAR),
    "cifar_resnet": (foreign.CifarResNet, ResNet, {"blocks": (2, 1)}, CIFAR),
    "torchvision_resnet": (
        lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
        ResNet,
        {"blocks": (1, 1, 1, 1), "stem": "large"},
        CIFAR,
    ),
    "torchvision_bottleneck": (
        lambda: models.ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5),
        ResNet,
        {"blocks": (1, 2, 1, 1), "bottleneck": True, "stem": "large"},
        CIFAR,
    ),
    "trades_mnist": (foreign.TradesSmallCNN, TradesMnist, {}, MNIST),
    "fast_mnist": (foreign.fast_mnist, FastMnist, {}, MNIST),
}


def pair(name: str, **changes: Any) -> tuple[nn.Module, Network, torch.Tensor]:
    """Theirs with lived-in statistics, ours fresh without normalisation, images. In float64."""
    torch.manual_seed(0)
    theirs, make, options, shape = LAYOUTS[name]
    zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
    source, network = theirs().double(), make(shape, 5, zeros, ones, **{**options, **changes}).double()
    x = torch.rand(4, *shape, dtype=F64)
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    source(x)
    return source.eval(), network.eval(), x


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_logits_are_theirs(name: str) -> None:
    source, network, x = pair(name)
    with torch.no_grad():
        expected = source(x)
        assert (network(x) - expected).abs().max() > 1e-3
        load_published(network, source.state_dict())
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)


def wrappings() -> dict[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]]:
    def prefixed(*prefixes: str) -> Callable[[dict[str, torch.Tensor]], dict[str, Any]]:
        return lambda state: {"".join(prefixes) + key: value for key, value in state.items()}

    return {
        "data_parallel": prefixed("module."),
        "compiled": prefixed("_orig_mod."),
        "both": prefixed("_orig_mod.", "module."),
        "held": prefixed("model."),
        "held_in_parallel": prefixed("module.", "model."),
        "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "model": lambda state: {"model": state, "ema": state},
        "net": lambda state: {"net": prefixed("module.")(state), "acc": 91.0},
        "nested": lambda state: {"model": {"state_dict": state, "config": "wrn"}},
        "ordered": lambda state: OrderedDict(state),
        "old": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    }


@pytest.mark.parametrize("how", sorted(wrappings()))
def test_wrappers_and_nesting_are_seen_through(how: str) -> None:
    source, network, x = pair("trades_wrn")
    load_published(network, wrappings()[how](source.state_dict()))
    torch.testing.assert_close(network(x), source(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_a_normalisation_beside_the_weights_is_taken_over(names: tuple[str, str]) -> None:
    source, network, x = pair("trades_wrn")
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    state = dict(source.state_dict())
    if names[0].startswith("normalize"):
        state = {f"model.{key}": value for key, value in state.items()}  # RobustBench's normalize_model
    load_published(network, {**state, names[0]: mean, names[1]: std})
    torch.testing.assert_close(network(x), source((x - mean) / std), rtol=0, atol=1e-6)


def test_our_own_state_loads_as_it_is() -> None:
    _, network, _ = pair("rice_preact")
    _, other, _ = pair("rice_preact", activation="silu")
    load_published(other, network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize(
    ("name", "changes", "damage", "said"),
    [
        ("trades_wrn", {}, without("fc."), r"WRN — missing: head\.bias, head\.weight;"),
        ("trades_wrn", {}, without("block2"), r"missing: stages\.block2_0\..* and \d+ more"),
        ("trades_wrn", {}, lambda state: {**state, "extra": torch.ones(1)}, r"unexpected: extra"),
        ("trades_wrn", {"depth": 10}, dict, r"unexpected: stages\.block1_1"),
        (
            "trades_wrn",
            {},
            lambda state: {**state, "fc.bias": torch.ones(3)},
            r"head\.bias is \(3,\) where .* has \(5,\)",
        ),
        ("trades_wrn", {"padding": "same"}, dict, r"pad otherwise; build with model\.padding=symmetric"),
        ("dm_wrn", {"padding": "symmetric"}, dict, r"build with model\.padding=same"),
        ("wong_preact", {"final_norm": True}, dict, r"missing: stages\.pool\.bn\.bias"),
        ("rice_preact", {"head": "hypersphere"}, dict, r"unexpected: head\.bias"),
        ("trades_wrn", {}, lambda state: {"epoch": 1, "weights": state}, r"hold no state dict"),
        ("trades_wrn", {}, lambda state: {}, r"missing: "),
    ],
)
def test_what_does_not_fit_is_said_and_not_loaded(
    name: str, changes: dict[str, Any], damage: Callable[[Any], Any], said: str
) -> None:
    source, network, _ = pair(name, **changes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(DataError, match=said) as caught:
        load_published(network, damage(source.state_dict()))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
