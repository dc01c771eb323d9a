"""ODI against its formula, one example and one step at a time."""

from __future__ import annotations

import pytest
import torch

from atbench.attacks.gradient.odi import ODI
from atbench.errors import ConfigError
from tests.support.targets import Aim, draws
from tests.support.traces import N, Trace, gap, uniform, world


@pytest.mark.parametrize("eps", [2e-5, 0.02])
def test_agrees_with_the_formula(eps: float) -> None:
    network, x, y = world()
    attack = ODI("linf", eps, steps=4, rel_step_size=0.3, diverse_steps=2, rel_diverse_step=0.8, restarts=3)
    x_adv = attack(Aim(network), x, y, draws(N))
    broken = []
    for row in range(N):
        trace = Trace(network, x[row : row + 1], int(y[row]), eps)
        for restart in range(3):
            if trace.broken:
                break
            place = ("restart", restart)
            start = (trace.x + eps * uniform((1, 8, 8), row, *place)).clamp(0, 1)
            w = uniform((5,), row, *place, call=1)[0]
            plan = [(lambda z, w=w: w @ z, 0.8 * eps)] * 2 + [(gap(trace.y), 0.3 * eps)] * 4
            trace.climb(start, plan)
        torch.testing.assert_close(x_adv[row : row + 1], trace.best, rtol=0, atol=1e-12)
        broken.append(trace.broken)
    assert any(broken) == (eps > 0.01) and not all(broken)


def test_the_directions_are_uniform_in_the_cube_and_anew_for_every_restart_and_example() -> None:
    seen = []

    class Probe(torch.nn.Module):
        """Its first gradient is w itself: the logits are the first pixels."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.flatten(1)[:, :10] * 1e-9
            if logits.requires_grad:
                logits.register_hook(lambda grad: seen.append(grad.clone()))
            bonus = torch.zeros_like(logits)
            bonus[:, 0] = 1.0  # nothing is ever broken
            return logits + bonus

    x, y = torch.rand(200, 1, 8, 8, dtype=torch.float64), torch.zeros(200, dtype=torch.long)
    ODI("linf", 0.01, steps=1, diverse_steps=2, restarts=2)(Aim(Probe()), x, y, draws(200))
    assert len(seen) == 2 * 3
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[3])
    w = torch.stack([seen[0], seen[3]])
    assert w.abs().max() <= 1 and w.unique().numel() == w.numel()
    assert abs(float(w.mean())) < 0.05 and abs(float(w.var()) - 1 / 3) < 0.02


def test_what_it_costs_where_nothing_breaks() -> None:
    network, x, y = world()
    aim = Aim(network)
    ODI("linf", 1e-6, steps=5, diverse_steps=2, restarts=3)(aim, x, y, draws(N))
    assert aim.gradients == N * 3 * (2 + 5) and aim.passes == N * 3 * (2 + 5 + 1)


def test_more_restarts_never_break_less() -> None:
    network, x, y = world(24)
    broken = [
        (network(ODI("linf", 0.012, steps=3, restarts=restarts)(Aim(network), x, y, draws(24))).argmax(1) != y)
        for restarts in (1, 2, 6)
    ]
    assert not (broken[0] & ~broken[1]).any() and not (broken[1] & ~broken[2]).any()


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.objective"):
        ODI("linf", 0.1, objective="l2")
