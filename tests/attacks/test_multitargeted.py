"""Targeted searches: which classes are tried and in which order, and what they reach on a linear network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks.gradient.multitargeted import OBJECTIVES, Targeted
from atbench.attacks.gradient.pgd import Pgd
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images

LOGITS = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
LABELS = torch.tensor([0, 2])


def targeted(norm: str = "linf", eps: float = 0.1, **changes: Any) -> Targeted:
    return Targeted(norm, eps, **{"steps": 10, "rel_step_size": 0.25, "targets": 9, **changes})


@pytest.mark.parametrize(
    ("rule", "targets", "expected"),
    [
        ("top", 2, [[2, 1], [3, 1]]),
        ("top", 9, [[2, 1, 3], [3, 1, 0]]),
        ("least", 1, [[3], [0]]),
        ("least", 9, [[3, 1, 2], [0, 1, 3]]),
    ],
)
def test_classes_come_in_the_order_of_their_clean_logits(rule: str, targets: int, expected: list[list[int]]) -> None:
    assert targeted(rule=rule, targets=targets).order(LOGITS, LABELS, draws(2)).tolist() == expected


def test_random_classes_are_all_the_wrong_ones_once() -> None:
    logits, y = torch.zeros(200, 4), torch.arange(200) % 4
    order = targeted(rule="random").order(logits, y, draws(200))
    assert all(sorted([*row, label]) == [0, 1, 2, 3] for row, label in zip(order.tolist(), y.tolist(), strict=True))
    first = torch.bincount(order[:, 0], minlength=4)
    assert (first > 30).all()


def test_the_targeted_objectives_rise_towards_the_target() -> None:
    y, t = torch.tensor([0, 2]), torch.tensor([1, 0])
    torch.testing.assert_close(OBJECTIVES["margin"](LOGITS, y, t), torch.tensor([-2.0, -2.0]))
    torch.testing.assert_close(OBJECTIVES["ce"](LOGITS, y, t), LOGITS.log_softmax(dim=1)[[0, 1], t])
    # (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2) with the logits 3, 2, 1, 0 and 4, 3, 2, 1
    torch.testing.assert_close(OBJECTIVES["dlr"](LOGITS, y, t), torch.tensor([-2.0 / 2.5, -2.0 / 2.5]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_multi_targeted_is_exact_on_a_linear_network(norm: str) -> None:
    """z_t − z_y is linear: one long step along its gradient is the best of the ball, and the best t is the nearest."""
    network = Linear()
    x, y = images(network)
    far = distance(network, x, y, norm)
    eps = float(far.median())
    attack = targeted(norm, eps, steps=1, rel_step_size=1.0, start="zero")
    broken = network(attack(Aim(network), x, y, draws(len(x)))).argmax(dim=1) != y
    clear = (far / eps - 1).abs() > 1e-6
    assert torch.equal(broken[clear], (far <= eps)[clear])


def test_it_breaks_what_cross_entropy_misses() -> None:
    """One pixel, three classes: the gradient of cross-entropy goes to the wrong side of the label."""

    class Fork(Linear):
        def forward(self, x: Tensor) -> Tensor:
            t = x.flatten(1)[:, :1] - 0.5
            # Class 2 is nearer in logits and never wins; class 1 is far off and overtakes at t = 0.2.
            return torch.cat([0 * t, 50 * t.clamp_min(0) - 10, -0.5 - (t - 0.1).abs() * 0 - 0.1 * t], dim=1)

    network = Fork()
    x, y = torch.full((1, 1, 1, 1), 0.499, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    plain = Pgd("linf", 0.4, steps=10, rel_step_size=0.25, start="zero")(Aim(network), x, y, draws(1))
    assert network(plain).argmax() == 0
    begun = x + 0.002  # the ramp of class 1 has begun, and cross-entropy still follows the class that is nearer
    found = targeted(eps=0.4, start="zero")(Aim(network), begun, y, draws(1))
    assert network(found).argmax() == 1


def test_any_wrong_class_is_a_success_and_survivors_alone_go_on() -> None:
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    attack = targeted(eps=float(distance(network, x, y, "linf").max()) * 3, restarts=3)
    broken = network(attack(aim, x, y, draws(len(x)))).argmax(dim=1) != y
    # All fall to the first target: a pass for the clean logits, then the search towards it alone.
    assert broken.all() and aim.passes <= len(x) * (1 + 11)


def test_every_target_of_every_restart_is_tried_on_what_holds() -> None:
    network, (x, y) = Linear(), images(Linear(), 3)
    aim = Aim(network)
    targeted(eps=1e-6, steps=2, targets=3, restarts=2, return_point="last")(aim, x, y, draws(3))
    assert aim.gradients == 3 * 2 * 3 * 2 and aim.passes == 3 * (1 + 3 * 2 * 3)
    few = Aim(Linear(classes=2))
    targeted(eps=1e-6, steps=2, return_point="last")(few, x, few.network(x).argmax(dim=1), draws(3))
    assert few.gradients == 3 * 2  # one wrong class, so one target


def test_too_few_classes_are_refused() -> None:
    network = Linear(classes=3)
    x, y = images(network)
    with pytest.raises(ConfigError, match="the network has 3 classes"):
        targeted(objective="dlr")(Aim(network), x, y, draws(len(x)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("objective", "cw"), ("rule", "hardest"), ("targets", 0), ("return_point", "best"), ("restarts", 0)],
)
def test_unknown_settings_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key}"):
        targeted(**{key: value})
