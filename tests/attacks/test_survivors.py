"""Who is broken, what is kept of each example, and that finished examples cost nothing."""

from __future__ import annotations

import torch

from atbench.attacks import GradientAttack, Objective, margin
from atbench.attacks.robust_tracker import Leg, Survivors, always
from tests.attacks.targets import Aim, Linear, images


def test_the_first_misclassified_image_stays_and_the_best_of_the_rest() -> None:
    network = Linear()
    x, y = images(network, n=3)
    survivors = Survivors(Aim(network), x, y)
    logits = torch.zeros(3, 5, dtype=x.dtype)
    logits[torch.arange(3), y] = torch.tensor([2.0, 2.0, -1.0], dtype=x.dtype)  # the third is misclassified
    assert survivors.see(torch.arange(3), x + 0.1, logits).tolist() == [False, False, True]
    logits[torch.arange(3), y] = torch.tensor([3.0, 1.0, -9.0], dtype=x.dtype)  # worse, better, no longer asked
    survivors.see(torch.arange(3), x + 0.2, logits)
    torch.testing.assert_close(survivors.x_adv, x + torch.tensor([0.1, 0.2, 0.1]).double().view(3, 1, 1, 1))
    assert survivors.rows().tolist() == [0, 1]


def test_rows_are_positions_in_the_batch() -> None:
    network = Linear()
    x, y = images(network, n=4)
    survivors = Survivors(Aim(network), x, y)
    logits = torch.zeros(2, 5, dtype=x.dtype)
    logits[0, (y[3] + 1) % 5] = 1.0
    logits[1, y[1]] = 1.0
    assert survivors.see(torch.tensor([3, 1]), x[[3, 1]], logits).tolist() == [True, False]
    assert survivors.broken.tolist() == [False, False, False, True]


def test_thin_waits_for_a_share() -> None:
    network = Linear()
    x, y = images(network, n=8)
    survivors = Survivors(Aim(network), x, y)
    rows = torch.arange(8)
    survivors.broken[:2] = True
    assert len(survivors.thin(rows, x, share=0.25)[0]) == 8
    assert survivors.thin(rows, x)[0].tolist() == [2, 3, 4, 5, 6, 7]
    survivors.broken[2] = True
    assert survivors.thin(rows, x, share=0.25)[0].tolist() == [3, 4, 5, 6, 7]


def test_a_walk_goes_on_where_the_last_leg_ended_and_looks_at_its_end() -> None:
    """Legs of 2 and 3 steps are one search of 5; 5 gradients and one more forward an example."""
    network = Linear()
    x, y = images(network, n=6)
    search = GradientAttack("linf", 1e-4, 5, 3e-5, start="zero")
    whole = search(Objective(network, margin, y), x)
    aim = Aim(network)
    survivors = Survivors(aim, x, y)
    legs = [Leg(lambda rows: Objective(aim.logits, margin, y[rows]), steps, 3e-5) for steps in (2, 0, 3)]
    rows, logits = survivors.walk(search, legs, torch.arange(6), x)
    assert not survivors.broken.any() and rows.tolist() == list(range(6))
    torch.testing.assert_close(survivors.x_adv, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits, network(whole), rtol=0, atol=1e-12)
    assert aim.gradients == 6 * 5 and aim.passes == 6 * 6


def test_what_is_broken_at_the_start_costs_one_look() -> None:
    network = Linear()
    x, y = images(network, n=6)
    aim = Aim(network)
    survivors = Survivors(aim, x, (y + 1) % 5)
    search = GradientAttack("linf", 0.01, 5, 0.003, start="zero")
    rows, _ = survivors.walk(search, [Leg(always(Objective(aim.logits, margin, y)), 5, 0.003)], torch.arange(6), x)
    assert len(rows) == 0 and survivors.broken.all() and aim.passes == 6
    assert torch.equal(survivors.x_adv, x)
