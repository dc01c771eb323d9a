"""FAB and FAB-T: closed forms, two iterations by hand, what they cost, and the official FAB-T beside ours."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

from atbench.attacks import ball
from atbench.attacks.min_norm.fab import FAB, FABT
from tests.support.targets import Aim, Linear, distance, draws, images
from tests.support.trained import balanced, distances, trained

NORMS = ("linf", "l2", "l1")
NEVER = 1e-9  # so small a radius that nothing counts as broken within it: every target and restart is run


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [FAB, FABT])
def test_the_distance_on_a_linear_network(kind: type[FAB], norm: str) -> None:
    network = balanced(classes=5)
    x, y = images(network)
    x_adv = kind(norm, NEVER, steps=20)(Aim(network), x, y, draws(len(x)))
    found, far = distances(network, x, x_adv, y, ball(norm).p), distance(network, x, y, norm)
    free = far < 0.3  # further away the box may come between, where a single pixel moves
    assert int(free.sum()) >= 30
    torch.testing.assert_close(found[free], far[free], rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_two_iterations_by_hand(norm: str) -> None:
    """On a linear network of two classes all points lie on one line; d is the way from x to the boundary.

    x¹ = x + 1.05 d, misclassified: back to b = x + 0.7·1.05 d = x + 0.735 d, with 0.265 d to go. α = 0.265 / 1.265 >
    0.1, so 0.1: x² = x + [0.9 (0.735 + 1.05·0.265) + 0.1·1.05] d = x + 1.016925 d.
    """
    network = balanced(classes=2)
    x, y = images(network)
    near = distance(network, x, y, norm) < 0.3  # so that the box does not come between
    x, y = x[near][:6], y[near][:6]
    far = distance(network, x, y, norm)
    for steps, share in ((1, 1.05), (2, 1.016925)):
        x_adv = FAB(norm, NEVER, steps=steps, beta=0.7)(Aim(network), x, y, draws(len(x)))
        torch.testing.assert_close(ball(norm).norm(x_adv - x), share * far, rtol=1e-6, atol=0)


def test_cost_of_what_survives_and_of_what_does_not() -> None:
    """One forward pass an iteration, with its gradient: what judges a point also linearises its boundaries."""
    network = Linear(classes=10)
    x, y = images(network)
    whole = Aim(network)
    FABT("linf", NEVER)(whole, x, y, draws(len(x)))
    assert whole.passes == len(x) * (1 + 9 * 101) and whole.gradients == len(x) * 900
    single = Aim(network)
    FABT("linf", 1.0, restarts=3)(single, x, y, draws(len(x)))
    assert single.passes == len(x) * (1 + 101)


def test_only_survivors_are_run_again() -> None:
    network = Linear()
    x, y = images(network)
    far = distance(network, x, y, "l2")
    eps = float(far.median())
    aim = Aim(network)
    x_adv = FAB("l2", eps, steps=20, restarts=2)(aim, x, y, draws(len(x)))
    # A full run ends within 0.1 % of the distance: those just around the median may fall on either side.
    again = aim.passes / 21 - len(x)
    assert int((far > eps).sum()) <= again <= int((1.01 * far > eps).sum())
    torch.testing.assert_close(ball("l2").norm(x_adv - x), far, rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_later_runs_begin_at_half_the_radius(norm: str) -> None:
    network = Linear()
    x, y = images(network)
    eps = float(distance(network, x, y, norm).min())
    seen: list[Tensor] = []

    class Watch(Aim):
        def logits(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().logits(x)

    FAB(norm, eps, steps=1, restarts=3)(Watch(network), x, y, draws(len(x)))
    first, second, third = seen[0], seen[2], seen[4]
    assert len(seen) == 6 and torch.equal(first, x) and not torch.equal(second, third)
    for start in (second, third):
        lengths = ball(norm).norm(start - x)
        torch.testing.assert_close(lengths, torch.full_like(lengths, eps / 2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_beside_the_official_attack(norm: str) -> None:
    """The same targets and iterations; the official one linearises at the point drawn back, at one more forward."""
    network, x, y = trained()
    steps, targets, p = 30, 3, ball(norm).p
    official = FABAttack_PT(network, norm=norm.capitalize(), n_iter=steps, eps=1.0, targeted=True, device="cpu")
    theirs = torch.full((len(x),), torch.inf)
    for position in range(targets):
        official.target_class = position + 2
        x_adv = official.attack_single_run(x, y, is_targeted=True)
        theirs = torch.minimum(theirs, distances(network, x, x_adv, y, p))
    x_adv = FABT(norm, NEVER, steps=steps, targets=targets)(Aim(network), x, y, draws(len(x)))
    ours = distances(network, x, x_adv, y, p)
    assert abs(float(ours.median() / theirs.median()) - 1) < 0.01
    eps = 1.001 * float(theirs.median())
    inside = FABT(norm, eps, steps=steps, targets=targets)(Aim(network), x, y, draws(len(x)))
    broken = int((distances(network, x, inside, y, p) <= eps).sum())
    assert abs(broken - int((theirs <= eps).sum())) <= 1
