"""C&W L2: the closed form, the search for c, what stopping early saves, and foolbox's attack beside ours."""

from __future__ import annotations

from typing import Any

import foolbox
import pytest
import torch
from torch import Tensor

from atbench.attacks.min_norm.cw import CarliniL2
from tests.support.targets import Aim, Linear, distance, draws, images
from tests.support.trained import balanced, distances, trained


def test_the_distance_on_a_linear_network() -> None:
    """Of two classes: of more, the class with the highest logit is gone to, which need not be the nearest. One step of
    Adam moves all 36 pixels by up to lr / 2, 0.03 together: what is not much further than that is overshot.
    """
    network = balanced(classes=2)
    x, y = images(network)
    x_adv = CarliniL2("l2", 1.0, steps=200)(Aim(network), x, y, draws(len(x)))
    found, far = distances(network, x, x_adv, y, 2), distance(network, x, y, "l2")
    assert found.isfinite().all() and int((far > 0.06).sum()) >= 15
    torch.testing.assert_close(found[far > 0.06], far[far > 0.06], rtol=0.02, atol=0)


def test_c_grows_tenfold_until_it_suffices_and_is_bisected_then() -> None:
    tried: list[list[float]] = []

    class Enough(CarliniL2):
        """A descent that misleads the network where c is at least 0.5 (first example) or at any c (second)."""

        def _descend(self, target: Any, nearest: Any, y: Tensor, c: Tensor) -> Tensor:
            tried.append(c.tolist())
            return c >= torch.tensor([0.5, 0.0])

    x = torch.rand(2, 1, 2, 2)
    Enough("l2", 1.0)(Aim(Linear()), x, torch.zeros(2, dtype=torch.long), draws(2))
    first, second = zip(*tried, strict=True)
    # up: too small; down to the middle of [0.1, 1] and on
    assert first == pytest.approx([0.001, 0.01, 0.1, 1, 0.55, 0.325, 0.4375, 0.49375, 0.521875])
    assert second == pytest.approx([0.001 / 2**number for number in range(9)])


def test_the_first_step_of_adam_and_the_objective() -> None:
    """Adam's first step is lr·sign(gradient) in v, and with a large c the gradient is the margin's.

    After it, x' = (tanh(atanh(2x − 1) ± lr) + 1) / 2 in every pixel, with the sign of the other class's slope.
    """
    network = Linear(classes=2)
    x, y = images(network, n=5)
    seen: list[Tensor] = []

    class Watch(Aim):
        def logits(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().logits(x)

    CarliniL2("l2", 1.0, steps=2, searches=1, lr=0.1, first_c=1e6)(Watch(network), x, y, draws(len(x)))
    w = (network.head.weight[1] - network.head.weight[0]).detach().view(1, 1, 6, 6)
    towards = torch.where(y.view(-1, 1, 1, 1) == 0, w, -w).sign()
    torch.testing.assert_close(seen[0], x, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[1], (torch.tanh(torch.atanh(2 * x - 1) + 0.1 * towards) + 1) / 2, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_stopping_early_saves_passes_and_no_distance() -> None:
    network = balanced(classes=2)
    x, y = images(network)
    aims, found = [Aim(network), Aim(network)], []
    for aim, progress in zip(aims, (CarliniL2.PROGRESS, float("inf")), strict=True):
        attack = CarliniL2("l2", 1.0, steps=200)
        attack.PROGRESS = progress
        found.append(distances(network, x, attack(aim, x, y, draws(len(x))), y, 2))
    assert aims[1].passes == len(x) * 9 * 200 and aims[0].passes < 0.8 * aims[1].passes
    far = distance(network, x, y, "l2")
    torch.testing.assert_close(found[0][far > 0.06], found[1][far > 0.06], rtol=0.02, atol=0)


@pytest.mark.slow
def test_beside_foolbox() -> None:
    network, x, y = (part[:40] if isinstance(part, Tensor) else part for part in trained())
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    rival = foolbox.attacks.L2CarliniWagnerAttack(steps=60, stepsize=0.1)
    x_theirs = rival.run(model, x, foolbox.criteria.Misclassification(y))
    x_ours = CarliniL2("l2", 1.0, steps=60, lr=0.1)(Aim(network), x, y, draws(len(x)))
    ours, theirs = (distances(network, x, found, y, 2) for found in (x_ours, x_theirs))
    assert ours.isfinite().all() and ours.median() <= 1.02 * theirs.median()
