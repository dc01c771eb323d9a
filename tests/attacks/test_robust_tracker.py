"""Broken examples, the best candidate of each, and that finished examples cost nothing."""

from __future__ import annotations

import torch

from atbench.attacks import GradientAttack, Objective, margin
from atbench.attacks.restarts import AttackStage, RobustTracker, always
from tests.support.targets import Aim, Linear, images


def test_the_first_misclassified_image_stays_and_the_best_of_the_rest() -> None:
    network = Linear()
    x, y = images(network, n=3)
    tracker = RobustTracker(Aim(network), x, y)
    logits = torch.zeros(3, 5, dtype=x.dtype)
    logits[torch.arange(3), y] = torch.tensor([2.0, 2.0, -1.0], dtype=x.dtype)  # the third is misclassified
    assert tracker.update(torch.arange(3), x + 0.1, logits).tolist() == [False, False, True]
    logits[torch.arange(3), y] = torch.tensor([3.0, 1.0, -9.0], dtype=x.dtype)  # worse, better, ignored
    tracker.update(torch.arange(3), x + 0.2, logits)
    torch.testing.assert_close(tracker.x_adv, x + torch.tensor([0.1, 0.2, 0.1]).double().view(3, 1, 1, 1))
    assert tracker.rows().tolist() == [0, 1]


def test_rows_are_positions_in_the_batch() -> None:
    network = Linear()
    x, y = images(network, n=4)
    tracker = RobustTracker(Aim(network), x, y)
    logits = torch.zeros(2, 5, dtype=x.dtype)
    logits[0, (y[3] + 1) % 5] = 1.0
    logits[1, y[1]] = 1.0
    assert tracker.update(torch.tensor([3, 1]), x[[3, 1]], logits).tolist() == [True, False]
    assert tracker.broken.tolist() == [False, False, False, True]


def test_dropping_waits_for_a_share() -> None:
    network = Linear()
    x, y = images(network, n=8)
    tracker = RobustTracker(Aim(network), x, y)
    rows = torch.arange(8)
    tracker.broken[:2] = True
    assert len(tracker.drop_broken(rows, x, share=0.25)[0]) == 8
    assert tracker.drop_broken(rows, x)[0].tolist() == [2, 3, 4, 5, 6, 7]
    tracker.broken[2] = True
    assert tracker.drop_broken(rows, x, share=0.25)[0].tolist() == [3, 4, 5, 6, 7]


def test_a_stage_goes_on_where_the_last_one_ended_and_the_end_is_evaluated() -> None:
    """Stages of 2 and 3 steps are one search of 5; 5 gradients and one more forward an example."""
    network = Linear()
    x, y = images(network, n=6)
    search = GradientAttack("linf", 1e-4, 5, 3e-5, start="zero")
    whole = search(Objective(network, margin, y), x)
    aim = Aim(network)
    tracker = RobustTracker(aim, x, y)
    stages = [AttackStage(lambda rows: Objective(aim.logits, margin, y[rows]), steps, 3e-5) for steps in (2, 0, 3)]
    rows, logits = tracker.run_stages(search, stages, torch.arange(6), x)
    assert not tracker.broken.any() and rows.tolist() == list(range(6))
    torch.testing.assert_close(tracker.x_adv, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits, network(whole), rtol=0, atol=1e-12)
    assert aim.gradients == 6 * 5 and aim.passes == 6 * 6


def test_what_is_broken_at_the_start_costs_one_pass() -> None:
    network = Linear()
    x, y = images(network, n=6)
    aim = Aim(network)
    tracker = RobustTracker(aim, x, (y + 1) % 5)
    search = GradientAttack("linf", 0.01, 5, 0.003, start="zero")
    rows, _ = tracker.run_stages(
        search, [AttackStage(always(Objective(aim.logits, margin, y)), 5, 0.003)], torch.arange(6), x
    )
    assert len(rows) == 0 and tracker.broken.all() and aim.passes == 6
    assert torch.equal(tracker.x_adv, x)
