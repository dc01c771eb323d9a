"""torchvision's networks behind the contract: the same function, with cuts, stems and activations of one's choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from atbench.errors import ConfigError
from atbench.models.published_weights import load_published
from atbench.models.torchvision_models import TorchVision, Wrapped, remove_head, replace_activations, split_stages
from tests.support.nets import build, library, on_meta, operations

# One of each way to be taken apart, at a size that keeps it quick; the last three are one stage and a head.
SIDES = {"resnet18": 32, "inception_v3": 75, "shufflenet_v2_x0_5": 32, "googlenet": 32, "squeezenet1_1": 32}
TINY: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "densenet": lambda: models.DenseNet(4, (1, 2, 1, 1), 8, num_classes=5),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=5),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
}


def stirred(net: nn.Module) -> nn.Module:
    """What starts at 0, at 1 or at 1e-6 hides what is behind it: at random values instead, in eval mode."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim < 2 or parameter.std() < 1e-3:
                parameter.uniform_(0.5, 1.0)
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SIDES))
def test_the_same_function_with_published_weights(name: str) -> None:
    """Auxiliary classifiers are dropped, everything else is used."""
    torch.manual_seed(1)
    side = SIDES[name]
    given = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    theirs = stirred(models.get_model(name, weights=None, num_classes=5, **given))
    network = library(name, side, stem="large")
    load_published(network, theirs.state_dict())
    network.eval()
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = theirs((x - 0.5) / 0.5)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", sorted(TINY))
def test_stages_are_the_whole_of_the_forward(name: str) -> None:
    torch.manual_seed(1)
    net = stirred(TINY[name]())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        replace_activations(net, None)
        _, head = remove_head(net, 5)
        stages = split_stages(net)
        assert type(stages["conv1"]) is nn.Conv2d and len(stages) > 4
        torch.testing.assert_close(head(nn.Sequential(*stages.values())(x)), expected)
    assert expected.std() > 0


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32", "swin_t"])
def test_every_published_name_has_a_place(name: str) -> None:
    given = {"image_size": 32} if name.startswith("vit") else {}
    theirs = on_meta(lambda: models.get_model(name, weights=None, num_classes=5, **given)).state_dict()
    network = on_meta(lambda: library(name, 32, stem="large"))
    assert isinstance(network, TorchVision)
    assert network.published.keys() == theirs.keys()
    assert {*network.published.values(), "mean", "std"} == network.state_dict().keys()


@pytest.mark.parametrize("name", sorted(SIDES))
def test_rectifiers_are_replaced_and_nothing_is_in_place(name: str) -> None:
    network = library(name, SIDES[name], activation="softplus").eval()
    with operations() as ops, torch.no_grad():
        network(torch.rand(2, 3, SIDES[name], SIDES[name]))
    assert "softplus" in ops
    assert not {"relu", "relu_", "clamp_min", "clamp_min_", "silu", "gelu", "hardswish"} & set(ops)
    assert {op for op in ops if op.endswith("_")} <= {"add_"}  # residual sums are theirs


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_small_stems_keep_the_size_of_the_image(name: str) -> None:
    network = library(name, 32)
    assert network.features(torch.rand(2, 3, 32, 32), upto=0).shape[2:] == (32, 32)


def test_heads_are_where_features_end() -> None:
    network = library("shufflenet_v2_x0_5", 32, head="hypersphere", head_scale=3.0)
    assert network.features(torch.rand(2, 3, 32, 32)).shape == (2, 1024)
    assert network(torch.rand(2, 3, 32, 32)).abs().max() <= 3


@pytest.mark.parametrize(
    ("name", "side", "options", "said"),
    [
        ("resnet19", 32, {}, r"model\.name: resnet19 .* did you mean 'resnet1"),
        ("inception_v3", 32, {}, r"inception_v3 — cannot take images of 32×32 pixels"),
        ("convnext_tiny", 16, {}, r"cannot take images of 16×16 pixels"),
        ("vit_b_16", 40, {}, r"cannot cut 40×40 pixels into 16×16; .* a multiple of 16"),
        ("maxvit_t", 32, {}, r"maxvit_t — cannot take images of 32×32"),
        ("squeezenet1_1", 32, {"head": "hypersphere"}, r"model\.head: .* does not end in a linear layer"),
        ("resnet18", 32, {"activation": "tanh"}, r"model\.activation: tanh"),
    ],
)
def test_what_cannot_be_is_one_clear_line(name: str, side: int, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        library(name, side, **options)
    assert "\n" not in str(caught.value)


def test_a_module_of_ones_own_gets_normalised_images() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    network = build(Wrapped, (3, 2, 2), module=net)
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(network(x), net((x - 0.5) / 0.5))
    with pytest.raises(ConfigError, match=r"model\.module"):
        build(Wrapped, (3, 2, 2), module="net")
