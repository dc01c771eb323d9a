"""BatchNorm of a frozen network as part of the convolution before it: the same numbers, whoever looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from atbench.models import Network, attack_mode, capture_batch_statistics
from atbench.models.folded_norm import FoldedSequential, FoldedStages
from tests.support.nets import SMALL, operations, small
from tests.support.nets import images as pictures


def images(side: int = 8) -> Tensor:
    return pictures(side).requires_grad_()


def started(network: nn.Module, side: int = 8) -> None:
    """Weights and statistics of all layers that are not those of their beginning."""
    network.double().train()
    network(images(side))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network.eval()


@pytest.fixture
def cnn() -> Network:
    torch.manual_seed(0)
    started(made := small("cnn"))
    return made


@pytest.fixture
def chain() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    started(made)
    return made


def outcome(network: Callable[[Tensor], Tensor], side: int = 8) -> tuple[Tensor, Tensor]:
    """Output for `images`, and the gradient of its squares' sum to them."""
    x = images(side)
    y = network(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mode", ["eval", "fixed"])
@pytest.mark.parametrize("name", SMALL)
def test_values_and_gradients_are_those_of_the_layers_at_every_cut(name: str, mode: str) -> None:
    torch.manual_seed(0)
    side = max(SMALL[name][2], 8)
    started(network := small(name), side)
    with capture_batch_statistics(network), torch.no_grad():
        network(images(side) ** 2)
    with attack_mode(network, mode, freeze=False):
        own = outcome(network, side)
        cuts = [network.features(images(side), upto) for upto in range(network.depth)]
    with attack_mode(network, mode):
        close(outcome(network, side), own)
        for upto, features in enumerate(cuts):
            close(network.features(images(side), upto), features)
            close(network.continue_from(features, upto + 1), cuts[-1])
        close(outcome(network, side), own)


@pytest.mark.parametrize(("name", "joined", "left"), [("cnn", 4, 0), ("resnet_bottleneck", 9, 0), ("preact", 2, 3)])
def test_which_layers_are_joined(name: str, joined: int, left: int) -> None:
    """All behind a convolution whose output nobody else reads: not those that pre-activation blocks begin with."""
    started(network := small(name))

    def norms() -> int:
        with operations() as seen, torch.no_grad():
            network(images())
        return sum(each == "addcmul" or "batch_norm" in each for each in seen)

    assert norms() == joined + left
    with attack_mode(network, "eval"):
        assert norms() == left


def test_children_that_are_called_one_by_one_are_themselves(chain: nn.Sequential) -> None:
    x = images()
    own = [x := layer(x) for layer in chain]
    with attack_mode(chain, "eval"):
        assert isinstance(vars(chain)["forward"], FoldedSequential)
        x = images()
        close([x := layer(x) for layer in chain], own)
        close(chain[:2](images()), own[1])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_see_what_the_layers_see(chain: nn.Sequential, place: int, before: bool) -> None:
    seen: list[Tensor] = []
    own = chain[: place + (not before)](images())
    expected = chain(images())
    with attack_mode(chain, "eval"):
        chain(images())
        if before:
            chain[place].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        else:
            chain[place].register_forward_hook(lambda layer, inputs, output: seen.append(output))
        close(chain(images()), expected)
    close(seen, [own])


def test_hooks_on_a_stage_see_the_stage(cnn: Network) -> None:
    own, seen = cnn.features(images(), 1), list[Tensor]()
    with attack_mode(cnn, "eval"):
        cnn(images())
        cnn.stages[1].register_forward_hook(lambda stage, inputs, output: seen.append(output))
        cnn(images())
    close(seen, [own])


def test_weights_that_change_in_the_block_count(chain: nn.Sequential) -> None:
    others = {"0.weight": torch.randn_like(chain[0].weight)}
    expected = functional_call(chain, others, (images(),))
    with attack_mode(chain, "eval"):
        chain(images())
        close(functional_call(chain, others, (images(),)), expected)
        with torch.no_grad():
            chain[0].weight.copy_(others["0.weight"])
        close(chain(images()), expected)


def test_layers_in_train_mode_normalise_by_the_batch(chain: nn.Sequential) -> None:
    with attack_mode(chain, "eval"):
        chain(images())
        chain.train()
        y = chain[1](chain[0](images()))
        close(chain(images()), y.relu())
        close(y.mean((0, 2, 3)), chain[1].bias)


def test_autocast_computes_what_it_computes_without(chain: nn.Sequential) -> None:
    chain.float()
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        own = chain(x)
        with attack_mode(chain, "eval"):
            assert torch.equal(chain(x), own)


def test_images_of_another_type_are_refused_as_ever(chain: nn.Sequential) -> None:
    with attack_mode(chain, "eval"), pytest.raises(RuntimeError, match="same"):
        chain(images().float())


def test_it_ends_with_the_block_and_inside_of_blocks_of_other_modes(cnn: Network) -> None:
    def replaced() -> set[type]:
        functions = [function for module in cnn.modules() for function in vars(module).values()]
        return {type(each) for each in functions} & {FoldedSequential, FoldedStages}

    with attack_mode(cnn, "eval"):
        assert replaced() == {FoldedStages}
        with attack_mode(cnn, "batch"):
            assert not replaced()
        assert replaced() == {FoldedStages}
        with attack_mode(cnn, "eval"):
            assert replaced() == {FoldedStages}
    assert not replaced()
    own = cnn(images())
    with pytest.raises(ZeroDivisionError), torch.no_grad(), attack_mode(cnn, "eval"):
        cnn.stages[0].weight.mul_(2)
        raise ZeroDivisionError
    assert not replaced()
    assert not torch.allclose(cnn(images()), own), "the next block sees weights that have changed"


def test_layers_of_others_are_left_alone() -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class Skip(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x)) + self[0](x)

    patched = nn.Conv2d(3, 4, 3)
    patched.forward = lambda x: nn.Conv2d.forward(patched, x) + 2  # type: ignore[method-assign]
    for made in (
        nn.Sequential(Mine(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(patched, nn.BatchNorm2d(4)),
        Skip(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    ):
        started(made)
        own = outcome(made)
        with attack_mode(made, "eval"):
            close(outcome(made), own)
