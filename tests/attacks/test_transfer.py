"""Transfer: what is asked of whom, its formula, and surrogates that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atbench.attacks import cross_entropy
from atbench.attacks.gradient.transfer import Transfer
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, draws, images
from tests.support.traces import world


def other(classes: int = 5) -> nn.Module:
    """A small convolutional network with BatchNorm, for the images of `Linear`."""
    torch.manual_seed(7)
    layers = (nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, classes))
    return nn.Sequential(*layers).double()


def test_the_target_is_asked_for_nothing_unless_along() -> None:
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    Transfer("linf", 0.2, lambda run: other(), run="other", steps=5)(aim, x, y, draws(len(x)))
    assert aim.passes == 0
    Transfer("linf", 1e-9, lambda run: other(), run="other", steps=5, along=True)(aim, x, y, draws(len(x)))
    assert aim.passes == 5 * len(x) and aim.gradients == 0


def test_agrees_with_the_formula() -> None:
    """Momentum over gradients of mean |∇| = 1, stepped by sign, on the surrogate alone."""
    surrogate, network = other(), Linear()
    x, y = images(network, n=6)
    x_adv = Transfer("linf", 0.1, lambda run: surrogate, run="other", steps=4, momentum=0.7)(
        Aim(network), x, y, draws(6)
    )
    surrogate.eval()
    for row in range(6):
        point, g = x[row : row + 1], torch.zeros(1, 1, 6, 6, dtype=x.dtype)
        for _ in range(4):
            leaf = point.clone().requires_grad_(True)
            cross_entropy(surrogate(leaf), y[row : row + 1]).sum().backward()
            g = 0.7 * g + leaf.grad / leaf.grad.abs().mean()
            point = (point + 0.025 * g.sign()).clamp(x[row] - 0.1, x[row] + 0.1).clamp(0, 1)
        torch.testing.assert_close(x_adv[row : row + 1], point, rtol=0, atol=1e-12)


def test_the_surrogate_is_searched_in_eval_mode_and_left_as_it_was() -> None:
    surrogate = other().train()
    before = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    network = Linear()
    x, y = images(network)
    Transfer("linf", 0.1, lambda run: surrogate, run="other", steps=3)(Aim(network), x, y, draws(len(x)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())
    assert surrogate.training and all(p.requires_grad and p.grad is None for p in surrogate.parameters())


def test_a_surrogate_in_single_precision_serves_a_target_in_double() -> None:
    network = Linear()
    x, y = images(network, n=4)
    x_adv = Transfer("linf", 0.1, lambda run: other().float(), run="other", steps=3)(Aim(network), x, y, draws(4))
    assert x_adv.dtype == torch.float64


def test_along_the_way_nothing_that_was_broken_is_lost() -> None:
    network = Linear()
    x, y = images(network)
    broken = {}
    for along in (False, True):
        attack = Transfer("linf", 0.15, lambda run: Linear(seed=1), run="other", along=along)
        broken[along] = network(attack(Aim(network), x, y, draws(len(x)))).argmax(dim=1) != y
    assert broken[False].any() and not (broken[False] & ~broken[True]).any()


def test_a_surrogate_that_is_the_target_is_plain_gradient_ascent() -> None:
    """Two classes: every step goes the same way, and the answer is x + ε·sign(w)."""
    network = Linear(classes=2)
    x, y = images(network)
    x_adv = Transfer("linf", 0.1, lambda run: network, run="self", steps=4)(Aim(network), x, y, draws(len(x)))
    w = network.head.weight.detach()
    towards = (w[1] - w[0]).sign().view(1, 1, 6, 6) * (1 - 2 * y).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, x + 0.1 * towards, rtol=0, atol=1e-12)


def test_surrogates_that_do_not_fit_are_refused_by_name() -> None:
    network = Linear()
    x, y = images(network)
    with pytest.raises(ConfigError, match=r"attack\.run"):
        Transfer("linf", 0.1, lambda run: other())
    with pytest.raises(ConfigError, match=r"attack\.objective"):
        Transfer("linf", 0.1, lambda run: other(), run="a", objective="l2")
    few = Transfer("linf", 0.1, lambda run: other(classes=2), run="few")
    with pytest.raises(ConfigError, match=r"attack\.run: few.*2 classes"):
        few(Aim(network), x, y, draws(len(x)))
    small, (larger, large, labels) = Transfer("linf", 0.1, lambda run: other(), run="small"), world()
    with pytest.raises(ConfigError, match=r"attack\.run: small.*1×8×8"):
        small(Aim(larger), large, labels, draws(len(large)))
