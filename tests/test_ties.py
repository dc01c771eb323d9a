"""No gradient of ours depends on the version of torch.

From torch 2.15 on the gradient of `clamp` at its bounds is another than up to 2.12 (0 or ½ instead of 1), and so is
that of a few functions which are made of it. Whatever trains or attacks uses
`atbench.attacks.norms.lp_ball.clip`, or what has always been the same (relu), wherever a gradient passes. Methods are
looked at in test_forward_cost.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from atbench.attacks import LABEL_OBJECTIVES
from atbench.models.activations import ACTIVATIONS
from tests.support.targets import NAMES, SIDE, Aim, Linear, draws, kind, make
from tests.support.ties import Watched


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched() as mode:
        yield mode


def test_the_watch_sees_what_it_is_for(watched: Watched) -> None:
    x = torch.rand(3, requires_grad=True)
    x.detach().clamp(0, 1)
    torch.relu(x)
    assert not watched.found
    (x + 1).clamp_(min=0)
    torch.clip(x, 0, 1)
    assert watched.found == {"clamp", "clip"}


@pytest.mark.parametrize("name", NAMES)
def test_of_attacks(name: str, watched: Watched) -> None:
    attack, network = make(name, kind(name).norms[0], 0.5, steps=2), Linear()
    x = torch.rand((4, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    attack(Aim(network), x, network(x).argmax(dim=1), draws(4))
    assert not watched.found


@pytest.mark.parametrize("name", sorted(LABEL_OBJECTIVES))
def test_of_objectives(name: str, watched: Watched) -> None:
    logits = torch.rand(3, 5, requires_grad=True)
    assert LABEL_OBJECTIVES[name](logits, torch.tensor([0, 1, 2])).requires_grad
    assert not watched.found


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_of_activations(name: str, watched: Watched) -> None:
    ACTIVATIONS[name]()(torch.rand(3, requires_grad=True))
    assert not watched.found
