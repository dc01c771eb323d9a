"""Restarts by hand: which examples go on, and which image is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.attacks.ascent.loop import Candidates
from atbench.attacks.restarts import ascend, run_restarts
from tests.support.targets import Linear, images


def scripted(name: float, values: list[float], broken: list[bool], calls: list[list[int]]) -> object:
    """A restart that records its rows, and returns from a table images filled with its name."""

    def restart(rows: Tensor) -> Candidates:
        calls.append(rows.tolist())
        return Candidates(
            torch.full((len(rows), 1, 1, 1), name), torch.tensor(values)[rows], torch.tensor(broken)[rows]
        )

    return restart


def test_only_robust_examples_go_on_and_the_best_candidate_is_kept() -> None:
    calls: list[list[int]] = []
    restarts = [
        scripted(0.1, [5.0, 1.0, 2.0, 9.0], [False, True, False, False], calls),
        scripted(0.2, [6.0, 9.0, 1.0, 3.0], [False, True, False, True], calls),
        scripted(0.3, [5.5, 9.0, 1.5, 9.9], [False, False, False, True], calls),
    ]
    result = run_restarts(torch.zeros(4, 1, 1, 1), restarts)
    assert calls == [[0, 1, 2, 3], [0, 2, 3], [0, 2]]
    # 0: highest value in the second; 1: broken by the first; 2: highest in the first; 3: broken, though at a lower one.
    torch.testing.assert_close(result.flatten(), torch.tensor([0.2, 0.1, 0.1, 0.2]))


def test_no_restart_runs_once_all_are_broken() -> None:
    calls: list[list[int]] = []
    restarts = [scripted(0.1, [0.0], [True], calls), scripted(0.2, [0.0], [True], calls)]
    run_restarts(torch.zeros(1, 1, 1, 1), restarts)
    assert calls == [[0]]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_an_ascent_reports_what_its_images_reach(keep: str) -> None:
    network = Linear()
    x, y = images(network)
    search = GradientAttack("linf", 0.008, steps=6, step_size=0.003, start="zero", return_point=keep)
    candidates = ascend(search, Objective(network, cross_entropy, y), y, x, x)
    logits = network(candidates.x_adv)
    assert torch.equal(candidates.done, logits.argmax(dim=1) != y)
    assert candidates.done.any() and not candidates.done.all()
    right = ~candidates.done
    torch.testing.assert_close(candidates.value[right], cross_entropy(logits, y)[right], rtol=0, atol=1e-12)
