"""The random search of Square Attack: its schedule, its queries, and the official one's answers."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from atbench.attacks import margin
from atbench.attacks.black_box.square import Square
from atbench.data.digits import digits
from tests.support.targets import Aim, Linear, distance, draws, images

NORMS = ("linf", "l2", "l1")


def test_the_schedule_is_autoattacks() -> None:
    ours = Square("linf", 0.1)
    theirs = SquareAttack(None, eps=0.1, p_init=0.8, resc_schedule=False)
    assert [ours.share(query) for query in range(9000)] == [theirs.p_selection(query) for query in range(9000)]


@pytest.mark.parametrize("norm", NORMS)
def test_what_holds_is_asked_so_often_and_never_with_a_gradient(norm: str) -> None:
    network = Linear()
    x, y = images(network, n=5)
    aim = Aim(network)
    Square(norm, 1e-6, steps=30, restarts=2)(aim, x, y, draws(5))
    assert aim.passes == 5 * 30 * 2 and aim.gradients == 0


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_broken_is_asked_no_more(norm: str) -> None:
    """Neither at first sight nor later: batches shrink while the search goes on."""
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    Square(norm, 1e-9, steps=30)(aim, x, (y + 1) % 5, draws(len(x)))
    assert aim.passes == len(x)

    queries: list[int] = []

    class Watched(Aim):
        def logits(self, x: Tensor) -> Tensor:
            queries.append(len(x))
            return super().logits(x)

    eps = 2 * float(distance(network, x, y, norm).median())
    x_adv = Square(norm, eps, steps=200)(Watched(network), x, y, draws(len(x)))
    assert queries[0] == len(x) and queries == sorted(queries, reverse=True)
    broken = int((network(x_adv).argmax(dim=1) != y).sum())
    assert broken > 0 and queries[-1] <= len(x) - broken + 2


@pytest.mark.parametrize("norm", NORMS)
def test_a_longer_search_begins_with_the_shorter_one(norm: str) -> None:
    network = Linear()
    x, y = images(network, n=16)
    eps = 1.5 * float(distance(network, x, y, norm).median())
    before: Tensor | None = None
    for steps in (1, 20, 260, 400):  # across the blocks that random numbers are drawn in
        x_adv = Square(norm, eps, steps)(Aim(network), x, y, draws(len(x)))
        value = margin(network(x_adv), y)
        if before is not None:
            assert (value >= before[1] - 1e-12).all() and (value > before[1]).any()
            broken = before[1] > 0
            assert torch.equal(x_adv[broken], before[0][broken])
        before = x_adv, value


def test_restarts_only_add() -> None:
    network = Linear()
    x, y = images(network)
    eps = 1.5 * float(distance(network, x, y, "linf").median())
    values = [
        margin(network(Square("linf", eps, 10, restarts=r)(Aim(network), x, y, draws(len(x)))), y) for r in (1, 4)
    ]
    assert (values[1] >= values[0] - 1e-12).all() and (values[1] > values[0]).any()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network on digits, and 100 images that it classifies right."""
    source = digits()
    images = source.train
    x, y = images.floats(torch.arange(len(images)), torch.float32), images.y
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    network.requires_grad_(False).eval()
    right = (network(x).argmax(dim=1) == y).nonzero().squeeze(1)[:100]
    return network, x[right], y[right]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.7), ("l1", 2.0)])
@pytest.mark.slow
def test_it_breaks_as_many_as_the_official_one(
    norm: str, eps: float, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    network, x, y = trained
    ours = Square(norm, eps, 200)(Aim(network), x, y, draws(len(x)))
    official = SquareAttack(
        network, norm=norm.capitalize(), n_queries=200, eps=eps, resc_schedule=False, seed=0, device="cpu"
    )
    # The official windows leave out the last row and column, as ours would with one place less along each axis.
    official.random_int = lambda low, high: (low + (high + 1 - low) * torch.rand(1)).long()
    theirs = official.perturb(x, y)
    held = [int((network(x_adv).argmax(dim=1) == y).sum()) for x_adv in (ours, theirs)]
    assert 10 < held[1] < 90, "a radius at which neither all hold nor none"
    assert abs(held[0] - held[1]) <= 5  # different draws
