"""Every network keeps the contract: cuts that join up and lie before activations, normalisation inside, small sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atbench.errors import ConfigError
from atbench.methods.dverge import Dverge
from atbench.methods.yopo import Yopo
from atbench.models import Ensemble, Network
from atbench.models.preact import PoolShortcut
from tests.support.nets import SMALL, build, images, small
from tests.support.worlds import attack, data, source, steps

NAMES = sorted(SMALL)
F64 = torch.float64


def side(name: str) -> int:
    return max(SMALL[name][2], 8)


def warmed(name: str, channels: int = 3, size: int | None = None) -> Network:
    """In eval mode, with running statistics that have seen images."""
    network = small(name, channels, size)
    for _ in range(3):
        network(images(size or side(name), channels, 16))
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
def test_stages_join_up_at_every_cut(name: str) -> None:
    network, x = warmed(name), images(side(name))
    whole = network(x)
    assert torch.equal(whole, network.head(network.features(x)))
    assert network.features(x).ndim == 2
    for cut in range(network.depth):
        h = network.features(x, upto=cut)
        assert torch.equal(network.classify(network.continue_from(h, cut + 1)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_stage_zero_is_one_linear_layer(name: str) -> None:
    network, x = warmed(name), images(side(name))
    assert type(network.stages[0]) is nn.Conv2d

    def first(z: torch.Tensor) -> torch.Tensor:
        return network.features(z, upto=0)

    torch.testing.assert_close(first(3 * x) - first(x), 2 * (first(2 * x) - first(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_cuts_lie_before_activations(name: str) -> None:
    """What is rectified has no negative entry; a map before it has many."""
    network, x = warmed(name), images(side(name))
    for cut in range(network.depth - 1):
        assert (network.features(x, upto=cut) < 0).double().mean() > 0.1, cut


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_is_inside(name: str) -> None:
    network, x = warmed(name), images(side(name))
    torch.testing.assert_close(network(x), network.head(network.stages((x - 0.5) / 0.5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_pixel_and_parameter(name: str) -> None:
    network, x = small(name), images(side(name)).requires_grad_()
    if name == "mnist_trades":
        with torch.no_grad():
            network.head.weight.normal_()  # it starts at 0
    network(x).square().sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(dim=(0, 1)) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name: str) -> None:
    make, options, least = SMALL[name]
    for channels in (1, 3):
        network = build(make, (channels, least, least), **options)
        assert network(torch.rand(4, channels, least, least)).shape == (4, 5)
    with pytest.raises(ConfigError, match=rf"model: .*{least - 1}×{least} pixels are too small; use at least {least}×"):
        build(make, (3, least - 1, least), **options)


@pytest.mark.parametrize("name", NAMES)
def test_images_need_not_be_square_or_even(name: str) -> None:
    make, options, least = SMALL[name]
    shape = (1, least + 5, least + 10)
    assert build(make, shape, **options)(torch.rand(2, *shape)).shape == (2, 5)


def test_a_pooled_shortcut_has_no_parameters_and_puts_zeros_in_the_missing_channels() -> None:
    z = torch.rand(2, 4, 8, 8, dtype=F64)
    tiles, overlapping = PoolShortcut(3, 2, kernel=2)(z), PoolShortcut(4, 2, kernel=3)(z)
    assert not tiles[:, [0, 5, 6]].any() and not overlapping[:, 4:].any()
    assert tiles[1, 2, 1, 3].item() == pytest.approx(z[1, 1, 2:4, 6:8].mean().item(), abs=1e-12)
    assert overlapping[1, 2, 1, 3].item() == pytest.approx(z[1, 2, 1:4, 5:8].mean().item(), abs=1e-12)
    assert overlapping[1, 2, 0, 0].item() == pytest.approx(z[1, 2, :2, :2].sum().item() / 9, abs=1e-12)
    # A shape that changes without a stride: of the activated map, as the authors' first group.
    assert torch.equal(PoolShortcut(2, 1, kernel=1)(z)[:, 1:5], z)
    assert not small("wrn_madry").stages.block1_0.raw and small("wrn_madry").stages.block2_0.raw


def test_a_projection_stands_in_every_group() -> None:
    shapes = [small("wrn_llr").stages.get_submodule(f"block{g}_0.shortcut").weight.shape[:2] for g in (1, 2, 3)]
    assert shapes == [(16, 16), (32, 16), (64, 32)]


def test_a_head_of_convolutions_normalises_before_it_pools() -> None:
    network = small("wrn_iaat", head="convolution").train()
    x = images(8)
    h = network.features(x, upto=network.depth - 2)
    bn, conv = network.stages.pool.bn, network.stages.pool.conv
    assert bn.weight is None and network.stages.pool.conv_bn.weight is not None and conv.bias is None
    scores = F.conv2d(F.relu(F.batch_norm(h, None, None, training=True)), conv.weight)
    expected = F.batch_norm(scores, None, None, training=True).mean((2, 3))
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)
    assert torch.equal(network(x), network.features(x))


@pytest.mark.parametrize("name", [name for name in NAMES if SMALL[name][2] <= 8])
def test_yopo_trains_it(name: str) -> None:
    given = data(source(classes=5))
    method = Yopo(small(name, channels=1), attack(), m=2, n=1)
    method.setup(given)
    assert all(torch.tensor(steps(method, given, 2)).isfinite())


@pytest.mark.parametrize("name", ["resnet", "preact", "wrn", "convnet8"])
def test_dverge_trains_an_ensemble_of_it(name: str) -> None:
    given = data(source(classes=5))
    method = Dverge(Ensemble([small(name, channels=1), small(name, channels=1)]), attack(), 0.07, 0.03, 1)
    method.setup(given)
    assert all(torch.tensor(steps(method, given, 1)).isfinite())


def test_deepmind_pads_below_and_to_the_right() -> None:
    """With kernels of ones a strided sum over a single bright pixel tells where the window was."""
    network = small("wrn_same")
    conv = network.stages.block2_0.residual.conv1
    with torch.no_grad():
        conv.weight.fill_(1.0)
    x = torch.zeros(1, conv.in_channels, 8, 8, dtype=F64)
    x[:, 0, 0, 0] = 1
    assert conv(x)[0, 0].nonzero().tolist() == [[0, 0]] and conv(x).shape[2:] == (4, 4)
    x = torch.zeros_like(x)
    x[:, 0, 2, 2] = 1  # seen by the windows from 0 and from 2, where symmetric padding has it in those around 2 alone
    assert conv(x)[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("wrn", {"depth": 29}, r"model\.depth: 29 .* use 28 or 34"),
        ("wrn", {"padding": "valid"}, r"model\.padding"),
        ("wrn", {"shortcut": "raw"}, r"model\.shortcut"),
        ("wrn", {"standardise": "batch"}, r"model\.standardise: batch .* dataset or image"),
        ("preact", {"shortcut": "pad"}, r"model\.shortcut"),
        ("resnet", {"shortcut": "pool"}, r"model\.shortcut"),
        ("resnet", {"stem": "tiny"}, r"model\.stem"),
    ],
)
def test_unknown_options_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(name, **options)
