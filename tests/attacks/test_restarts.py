"""Tries on tracker, by hand: who is handed on, and which image is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.attacks.ascent.loop import Candidates
from atbench.attacks.restarts import ascend, run_restarts
from tests.support.targets import Linear, images


def scripted(name: float, values: list[float], broken: list[bool], seen: list[list[int]]) -> object:
    """A try that notes whom it is handed, and answers from a table with images that bear its name."""

    def attempt(rows: Tensor) -> Candidates:
        seen.append(rows.tolist())
        return Candidates(
            torch.full((len(rows), 1, 1, 1), name), torch.tensor(values)[rows], torch.tensor(broken)[rows]
        )

    return attempt


def test_only_survivors_go_on_and_the_best_try_is_kept() -> None:
    seen: list[list[int]] = []
    tries = [
        scripted(0.1, [5.0, 1.0, 2.0, 9.0], [False, True, False, False], seen),
        scripted(0.2, [6.0, 9.0, 1.0, 3.0], [False, True, False, True], seen),
        scripted(0.3, [5.5, 9.0, 1.5, 9.9], [False, False, False, True], seen),
    ]
    result = run_restarts(torch.zeros(4, 1, 1, 1), tries)
    assert seen == [[0, 1, 2, 3], [0, 2, 3], [0, 2]]
    # 0: highest value in the second; 1: broken by the first; 2: highest in the first; 3: broken, though at a lower one.
    torch.testing.assert_close(result.flatten(), torch.tensor([0.2, 0.1, 0.1, 0.2]))


def test_nothing_is_tried_on_nobody() -> None:
    seen: list[list[int]] = []
    tries = [scripted(0.1, [0.0], [True], seen), scripted(0.2, [0.0], [True], seen)]
    run_restarts(torch.zeros(1, 1, 1, 1), tries)
    assert seen == [[0]]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_an_ascent_says_truly_what_it_reached(keep: str) -> None:
    network = Linear()
    x, y = images(network)
    search = GradientAttack("linf", 0.008, steps=6, step_size=0.003, start="zero", return_point=keep)
    got = ascend(search, Objective(network, cross_entropy, y), y, x, x)
    logits = network(got.x_adv)
    assert torch.equal(got.done, logits.argmax(dim=1) != y)
    assert got.done.any() and not got.done.all()
    right = ~got.done
    torch.testing.assert_close(got.value[right], cross_entropy(logits, y)[right], rtol=0, atol=1e-12)
