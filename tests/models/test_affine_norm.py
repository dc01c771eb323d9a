"""BatchNorm of a frozen network in eval mode as an affine map: the same numbers, in the block alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atbench.models import attack_mode, capture_batch_statistics
from tests.support.nets import operations

F64 = torch.float64


def trained(norm: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A layer with statistics and weights that are not those of its beginning."""
    torch.manual_seed(0)
    norm.to(F64).train()
    norm(3 + 2 * torch.randn(shape, dtype=F64))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "2d": (lambda: nn.BatchNorm2d(4), (8, 4, 3, 3)),
    "3d": (lambda: nn.BatchNorm3d(4), (8, 4, 2, 2, 2)),
    "without weights": (lambda: nn.BatchNorm2d(4, affine=False), (8, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["eval", "fixed"])
def test_values_and_gradients_are_those_of_the_layer(name: str, mode: str) -> None:
    make, shape = LAYERS[name]
    norm = trained(make(), shape)
    x, weight = torch.randn(2, *shape, dtype=F64)
    with capture_batch_statistics(norm), torch.no_grad():
        norm.eval()(5 * x)
    outcomes: list[tuple[Tensor, Tensor]] = []
    for freeze in (False, True):  # the layer's own forward, and the affine one
        x = x.detach().requires_grad_()
        with attack_mode(norm, mode, freeze=freeze), operations() as seen:
            y = norm(x)
            outcomes.append((y.detach(), torch.autograd.grad((weight * y).sum(), x)[0]))
        assert any("batch_norm" in operation for operation in seen) is not freeze
    for own, affine in zip(*outcomes, strict=True):
        torch.testing.assert_close(affine, own, rtol=1e-13, atol=1e-13)


def test_it_ends_with_the_block_and_inside_of_blocks_of_other_modes() -> None:
    norm = trained(nn.BatchNorm2d(4), (8, 4, 3, 3))
    x = torch.randn(8, 4, 3, 3, dtype=F64)
    own = norm.eval()(x)
    with attack_mode(norm, "eval"):
        outside = norm(x)
        with attack_mode(norm, "batch"):
            assert torch.allclose(norm(x).mean((0, 2, 3)), norm.bias, atol=1e-12), "normalised by the batch"
        with attack_mode(norm, "eval", freeze=False):
            assert "forward" not in vars(norm) and torch.allclose(norm(x), outside, atol=1e-12)
        norm.train()
        assert not torch.equal(norm(x), outside), "a layer in train mode is itself"
        norm.eval()
    assert "forward" not in vars(norm)
    norm.running_mean += 1
    with pytest.raises(ZeroDivisionError), attack_mode(norm, "eval"):
        assert not torch.allclose(norm(x), own), "the next block sees statistics that have moved"
        raise ZeroDivisionError
    assert "forward" not in vars(norm)


def test_layers_of_others_are_left_alone() -> None:
    class Mine(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    x = torch.zeros(2, 4, 3, 3)
    with attack_mode(mine := Mine(4), "eval"):
        assert torch.equal(mine(x), x + 1)
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: x + 2  # type: ignore[method-assign]
    with attack_mode(norm, "eval"):
        assert torch.equal(norm(x), x + 2)
    assert torch.equal(norm(x), x + 2)


def test_a_compiled_part_is_left_alone() -> None:
    """A forward that changes from block to block would have it compiled again; methods hold the compiled model."""
    owner = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)))
    for compiled in (False, True):
        if compiled:
            owner[0]._compiled_call_impl = owner[0].__call__
        with attack_mode(owner, "eval"):
            assert ("forward" in vars(owner[0][0])) is not compiled
