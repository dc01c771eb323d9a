"""Activations by formula: values, slopes at zero, limits, and what they are in a network."""

from __future__ import annotations

import math

import pytest
import torch

from atbench.errors import ConfigError
from atbench.models.activations import ACTIVATIONS, SmoothReLU, activation_factory
from tests.support.nets import SMALL, operations, small

F64 = torch.float64
X = torch.linspace(-5, 5, 1001, dtype=F64)


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


@pytest.mark.parametrize("root", [1.0, 3.0, 20.0])
def test_smooth_relu_is_its_formula(root: float) -> None:
    b = root**2
    expected = torch.where(X >= 0, X - torch.log(b * X.clamp(min=0) + 1) / b, torch.zeros_like(X))
    torch.testing.assert_close(SmoothReLU(root).double()(X), expected, rtol=0, atol=1e-12)


def test_smooth_relu_tends_to_relu() -> None:
    gaps = [(SmoothReLU(root).double()(X) - relu(X)).abs().max().item() for root in (1.0, 10.0, 100.0, 1000.0)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 2e-5


def test_smooth_relu_is_differentiable_twice_and_learns_its_root() -> None:
    act = SmoothReLU(2.0).double()
    x = torch.tensor([-1.0, 0.3, 2.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(act, x) and torch.autograd.gradgradcheck(act, x)
    act(x).sum().backward()
    assert act.root.grad is not None and act.root.grad.abs() > 0
    assert act.root.ndim == 0  # spared by `train.weight_decay_on: weights`


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_softplus_is_its_formula_and_near_relu(alpha: float) -> None:
    act = activation_factory("softplus" if alpha == 1 else "parametric_softplus")()
    torch.testing.assert_close(act(X), torch.log1p(torch.exp(alpha * X)) / alpha, rtol=0, atol=1e-8)
    assert float((act(X) - relu(X)).max()) == pytest.approx(math.log(2) / alpha)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_slopes_meet_at_zero_but_for_the_kinked(name: str) -> None:
    act, h = activation_factory(name)().double(), 1e-7
    left, middle, right = (act(torch.tensor(x, dtype=F64)).item() for x in (-h, 0.0, h))
    smooth = abs((right - middle) - (middle - left)) / h < 1e-3
    assert smooth == (name not in ("relu", "leaky_relu"))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_call_makes_a_module_of_its_own_that_keeps_its_input(name: str) -> None:
    act = activation_factory(name)()
    assert act is not activation_factory(name)()
    x = X.clone().float()
    act(x)
    assert torch.equal(x, X.float())


def test_an_unknown_activation_is_refused_with_a_near_miss() -> None:
    with pytest.raises(ConfigError, match=r"model\.activation: smoothrelu .* did you mean 'smooth_relu'"):
        activation_factory("smoothrelu")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_network_rectifies_by_modules_of_the_chosen_kind_alone(name: str) -> None:
    """As many operations as modules, so that none is shared and none a function; nothing is done in place."""
    network = small(name, activation="softplus").eval()
    side = max(SMALL[name][2], 8)
    with operations() as ops, torch.no_grad():
        network(torch.rand(2, 3, side, side, dtype=F64))
    acts = [module for module in network.modules() if isinstance(module, torch.nn.Softplus)]
    assert ops.count("softplus") == len(acts) > 0
    assert not {"relu", "relu_", "clamp_min", "clamp_min_", "silu", "gelu", "elu", "leaky_relu"} & set(ops)
    assert not [op for op in ops if op.endswith("_")]
