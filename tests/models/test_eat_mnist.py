"""The four networks of ensemble adversarial training: the authors' counts, how kernels begin, where dropout stands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atbench.config.instantiate import build as build_node
from atbench.errors import ConfigError
from atbench.models.eat_mnist import EatMnist
from tests.support.nets import build, count, on_meta, option

MNIST = {"shape": (1, 28, 28), "classes": 10, "mean": (0.0,), "std": (1.0,)}


@pytest.mark.parametrize(
    ("name", "parameters", "rates"),
    [
        ("a", 3_382_346, [0.0, 0.25, 0.5]),
        ("b", 710_218, [0.2, 0.5]),
        ("c", 4_795_082, [0.0, 0.25, 0.5]),
        ("d", 509_410, [0.0, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_networks_are_the_authors(name: str, parameters: int, rates: list[float]) -> None:
    """Trainable parameters as in mnist.py, and the rates of dropout: pixels first, then as they are met."""
    node = option(f"mnist_eat_{name}")
    network = on_meta(lambda: build_node(node, "model", **MNIST))
    assert count(network) == parameters
    met = [module.p for module in network.stages.modules() if isinstance(module, nn.Dropout)]
    assert [network.drop_input.p, *met] == rates


def test_an_image_of_mnist_ends_in_one_pixel_of_b() -> None:
    convs = ((4, 8, 2, 3), (8, 6, 2, 0), (8, 5, 1, 0))
    network = build(EatMnist, (1, 28, 28), convs=convs, hidden=(), drop_features=0.5)
    sides = [tuple(network.features(torch.rand(1, 1, 28, 28), cut).shape[2:]) for cut in range(3)]
    assert sides == [(14, 14), (5, 5), (1, 1)] and network.head.in_features == 8


@pytest.mark.parametrize("init", ["glorot_uniform", "he_normal"])
def test_kernels_begin_as_in_keras(init: str) -> None:
    network = build(EatMnist, (1, 16, 16), convs=((64, 0, 1, 0),), hidden=(300,), init=init)
    first, hidden, head = network.stages.conv1, network.stages.fc1.fc, network.head
    for layer, fan_in, fan_out in ((first, 256, 256 * 64), (hidden, 64, 300), (head, 300, 5)):
        bound = math.sqrt(6 / (fan_in + fan_out))
        glorot = init == "glorot_uniform" or layer is head
        deviation = bound / math.sqrt(3) if glorot else math.sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert (layer.weight.abs().max().item() <= bound) is glorot
        assert not layer.bias.any()
    with pytest.raises(ConfigError, match=r"model\.init: xavier"):
        build(EatMnist, (1, 16, 16), init="xavier")


def test_a_dropped_pixel_is_black_whatever_the_normalisation() -> None:
    network = build(EatMnist, (1, 8, 8), convs=((4, 3, 1, 0),), hidden=(8,), drop_input=0.5)
    x = torch.rand(2, 1, 8, 8)
    with torch.random.fork_rng():
        kept = network.normalise(x)
    black = kept == (0 - 0.5) / 0.5
    assert 0.2 < black.float().mean() < 0.8
    torch.testing.assert_close(kept[~black], ((2 * x - 0.5) / 0.5)[~black])
    assert torch.equal(network.eval().normalise(x), (x - 0.5) / 0.5)
