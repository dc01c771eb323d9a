"""Steps that are taken back: the value never falls, and what is fallen back to is legal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, State, cross_entropy
from atbench.errors import ConfigError
from tests.support.worlds import F64, attack, cnn, draws, middle


def test_backtracking_never_loses_ground() -> None:
    network, (x, y) = cnn(seed=1), middle()
    seen: list[Tensor] = []

    def watch(state: State) -> Tensor:
        seen.append(state.value.clone())
        return torch.zeros_like(state.rows, dtype=torch.bool)

    search = attack(steps=12, step_size=0.2, eps=0.3, start="zero", return_point="best", backtrack=1.5)
    search(Objective(network, cross_entropy, y), x, stop=watch)
    values = torch.stack(seen)
    assert len(values) == 13 and (values.diff(dim=0) >= 0).all() and (values[-1] > values[0]).all()


def test_backtracking_needs_a_last_look() -> None:
    with pytest.raises(ConfigError, match=r"attack\.backtrack"):
        attack(return_point="last", backtrack=2.0)


@pytest.mark.parametrize(("norm", "eps", "start"), [("linf", 1e-4, "gaussian"), ("l2", 0.1, "corner")])
def test_a_start_outside_that_every_step_falls_back_to_is_not_returned(norm: str, eps: float, start: str) -> None:
    """Backtracking takes every step back: the start stays, and is no legal answer as it is."""
    x = torch.full((5, 1, 8, 8), 0.5, dtype=F64)
    calls = iter(range(100))
    # An objective that falls with every call, whatever the point.
    objective = Objective(lambda z: z, lambda z: z.flatten(1).sum(dim=1) - 1e3 * next(calls))
    search = attack(norm=norm, eps=eps, step_size=eps, start=start, return_point="first", backtrack=2.0)
    x_adv = search(objective, x, rng=draws())
    assert (x_adv != x).any() and (search.ball.norm(x_adv - x) <= eps * (1 + 1e-9)).all()
