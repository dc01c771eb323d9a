"""Modes of the normalisation in a search: what is normalised by what, what moves, and that all is put back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.models import BN_MODES, Frozen, attack_mode, capture_batch_statistics

F64 = torch.float64


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
        )
        self.double()


@pytest.fixture
def net() -> Net:
    """A network whose running statistics have seen something, in a mixed state of modes."""
    torch.manual_seed(0)
    net = Net()
    for _ in range(3):
        net(2 + torch.randn(16, 1, 6, 6, dtype=F64))
    net[4].eval()  # fine-tuning keeps a layer in eval mode: it must come back so
    return net


def batch(seed: int = 1) -> Tensor:
    return 1 + 3 * torch.randn((8, 1, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=F64)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def normalised(net: Net, x: Tensor, how: str) -> Tensor:
    """The first layer and its normalisation, by hand. (Dropout is not in the way.)"""
    h = net[0](x)
    if how == "running":
        mean, var = net[1].running_mean, net[1].running_var
    else:
        mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    h = (h - mean.view(shape)) / (var.view(shape) + net[1].eps).sqrt()
    return h * net[1].weight.view(shape) + net[1].bias.view(shape)


@pytest.mark.parametrize(("mode", "how"), [("eval", "running"), ("train", "batch"), ("batch", "batch")])
def test_what_a_mode_normalises_by(net: Net, mode: str, how: str) -> None:
    x = batch()
    expected = normalised(net, x, how)
    with attack_mode(net, mode, freeze=False):
        torch.testing.assert_close(net[1](net[0](x)), expected, rtol=0, atol=1e-12)


def test_fixed_normalises_by_the_captured_batch(net: Net) -> None:
    x, other = batch(), batch(2)
    with capture_batch_statistics(net):
        net(x)
    expected = normalised(net, x, "batch")
    with attack_mode(net, "fixed", freeze=False):
        torch.testing.assert_close(net[1](net[0](x)), expected, rtol=0, atol=1e-12)
        whole, row = net(other), net(other[:1])
        torch.testing.assert_close(row, whole[:1], rtol=0, atol=1e-12)  # examples do not see each other


@pytest.mark.parametrize("mode", BN_MODES)
def test_only_train_moves_running_statistics(net: Net, mode: str) -> None:
    if mode == "fixed":
        with capture_batch_statistics(net.eval()):
            net(batch())
        net.train()
        net[4].eval()
    before = state(net)
    with attack_mode(net, mode, freeze=False):
        net(batch())
        net(batch(2))
    after = state(net)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {f"{i}.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == (statistics if mode == "train" else set())
    if mode == "train":
        assert after["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 2


@pytest.mark.parametrize("mode", BN_MODES)
def test_everything_is_put_back_even_after_an_error(net: Net, mode: str) -> None:
    with capture_batch_statistics(net):
        net(batch())
    layers = [net[1], net[4]]
    before = [(m.training, m.track_running_stats, id(m.running_mean), id(m.running_var)) for m in layers]
    modes = [m.training for m in net.modules()]
    with pytest.raises(RuntimeError, match="inside"), attack_mode(net, mode, freeze=False):
        raise RuntimeError("inside")
    assert [(m.training, m.track_running_stats, id(m.running_mean), id(m.running_var)) for m in layers] == before
    assert [m.training for m in net.modules()] == modes
    assert state(net).keys() == Net().state_dict().keys()  # what was captured is not saved


def test_train_mode_keeps_dropout_and_eval_does_not(net: Net) -> None:
    x = batch()
    with attack_mode(net, "eval", freeze=False):
        assert torch.equal(net(x), net(x))
    with attack_mode(net, "batch", freeze=False):
        assert not torch.equal(net(x), net(x))


def test_frozen_cannot_be_woken() -> None:
    inner = Net()
    outer = nn.ModuleDict({"teacher": Frozen(inner), "student": Net()})
    outer.train()
    assert outer["student"].training and not any(m.training for m in outer["teacher"].modules())
    with attack_mode(outer, "train", freeze=False):
        before = state(inner)
        x = batch().requires_grad_()
        outer["teacher"](x).sum().backward()
        assert all(torch.equal(before[name], value) for name, value in inner.state_dict().items())
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in inner.parameters())


def test_it_freezes_and_restores_flags(net: Net) -> None:
    net[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]
    with pytest.raises(RuntimeError, match="inside"), attack_mode(net, "batch"):
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError("inside")
    assert [p.requires_grad for p in net.parameters()] == flags and flags[0] is False


@pytest.mark.parametrize("mode", ["eval", "fixed", "train", "batch"])
def test_dropout_of_the_update_does_not_repeat_that_of_the_attack(net: Net, mode: str) -> None:
    with capture_batch_statistics(net):
        net(batch())
    before = torch.get_rng_state()
    with attack_mode(net, mode):
        net(batch()), torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before) == (mode in ("eval", "fixed"))


def test_gradients_reach_the_input_of_a_frozen_network(net: Net) -> None:
    x = batch().requires_grad_()
    with attack_mode(net, "eval"):
        net(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
