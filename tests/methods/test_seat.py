"""SEAT: PGD-AT to the bit, and the decay of its average."""

from __future__ import annotations

import pytest
import torch

from atbench.data import TrainData
from atbench.methods.pgd_at import PgdAt
from atbench.methods.seat import Seat
from tests.support import worlds


def make(given: TrainData, norm: str = "batch", decay: float = 0.999) -> Seat:
    method = Seat(worlds.cnn(norm=norm), worlds.attack(), decay)
    worlds.start(method, given)
    return method


def test_what_is_trained_is_pgd_at_to_the_bit() -> None:
    given = worlds.data()
    method, plain = make(given), PgdAt(worlds.cnn(norm="batch"), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(plain, given, 8)
    assert worlds.same(method.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("decay", [0.999, 0.3])
def test_the_decay_rises_from_a_tenth(decay: float) -> None:
    """seat.py: min(alpha, (t + 1) / (t + 10)) at update t = 0, 1, …, from the initial weights on."""
    given = worlds.data()
    method = make(given, decay=decay)
    expected = {name: value.clone() for name, value in method.model.state_dict().items()}
    for t in range(6):
        worlds.steps(method, given, 1, first=t)
        rate = min(decay, (t + 1) / (t + 10))
        for name, value in method.model.state_dict().items():
            expected[name] = rate * expected[name] + (1 - rate) * value
            if value.is_floating_point():
                found = method.evaluated().state_dict()[name]
                torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-14)
    assert not worlds.same(method.evaluated().state_dict(), method.model.state_dict())


def test_contract() -> None:
    given = worlds.data()
    method = make(given, norm="none")
    worlds.check_pure(method, given.batch(0, 0))
    worlds.check_resume(lambda: make(given), given)
