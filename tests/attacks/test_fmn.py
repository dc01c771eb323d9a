"""FMN: closed forms, the first steps by hand, and foolbox's attack beside ours."""

from __future__ import annotations

import math

import foolbox
import pytest
import torch
from torch import Tensor

from atbench.attacks import ball
from atbench.attacks.min_norm.fmn import FMN
from tests.support.targets import Aim, Linear, distance, draws, images
from tests.support.trained import balanced, distances, trained

THEIRS = {
    "linf": foolbox.attacks.LInfFMNAttack,
    "l2": foolbox.attacks.L2FMNAttack,
    "l1": foolbox.attacks.L1FMNAttack,
}


@pytest.mark.parametrize("norm", THEIRS)
def test_the_distance_on_a_linear_network(norm: str) -> None:
    """Of two classes. Of more, FMN goes to the class with the highest logit, which need not be the nearest."""
    network = balanced(classes=2)
    x, y = images(network)
    x_adv = FMN(norm, 1.0, steps=200)(Aim(network), x, y, draws(len(x)))
    found, far = distances(network, x, x_adv, y, ball(norm).p), distance(network, x, y, norm)
    free = far < 0.3  # further away the box may come between, where a single pixel moves
    assert int(free.sum()) >= 20
    torch.testing.assert_close(found[free], far[free], rtol=0.05, atol=0)


def test_the_radius_follows_the_boundary() -> None:
    """On a linear network of two classes, with steps longer than the radius, ‖δ‖₂ is the radius.

    Crossed at (1 + γ₀) d; within, the radius shrinks by the next γ until it is on this side again, and then grows.
    """
    network = Linear(classes=2)
    x, y = images(network, n=6)
    far = distance(network, x, y, "l2")
    seen: list[Tensor] = []

    class Watch(Aim):
        def logits(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().logits(x)

    FMN("l2", 1.0, steps=6, step_size=1.0, gamma=0.2)(Watch(network), x, y, draws(len(x)))
    shares = [float(((point - x).flatten(1).norm(dim=1) / far).mean()) for point in seen]
    expected = [0.0]
    for step in range(6):
        gamma = 0.001 + 0.199 * (1 + math.cos(math.pi * step / 6)) / 2
        best = min((share for share in expected if share > 1), default=math.inf)
        if expected[-1] > 1:
            expected.append(min((1 - gamma) * expected[-1], best))
        else:
            expected.append((1 + gamma) * (expected[-1] if best < math.inf else 1))
    assert shares == pytest.approx(expected, rel=1e-6)
    assert len({share > 1 for share in expected[1:]}) == 2


@pytest.mark.parametrize("norm", THEIRS)
@pytest.mark.slow
def test_beside_foolbox(norm: str) -> None:
    network, x, y = trained()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    x_theirs = THEIRS[norm](steps=100).run(model, x, foolbox.criteria.Misclassification(y))
    aim = Aim(network)
    x_ours = FMN(norm, 1.0, steps=100)(aim, x, y, draws(len(x)))
    ours, theirs = (distances(network, x, found, y, ball(norm).p) for found in (x_ours, x_theirs))
    assert ours.isfinite().all() and ours.median() <= 1.02 * theirs.median()
    assert aim.passes == 101 * len(x) and aim.gradients == 100 * len(x)
