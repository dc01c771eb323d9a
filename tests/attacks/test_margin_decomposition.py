"""Margin decomposition against its formula; its step sizes by hand; what it is for."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.gradient.margin_decomposition import MarginDecomposition
from atbench.attacks.gradient.odi import ODI
from atbench.errors import ConfigError
from tests.support.targets import Aim, draws
from tests.support.traces import N, Trace, gap, true, uniform, world, wrong


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("eps", [2e-5, 0.02])
def test_agrees_with_the_formula(schedule: str, eps: float) -> None:
    """9 steps: 4 on one term, the first of them away from the boundary, and 5 on the margin."""
    network, x, y = world()
    attack = MarginDecomposition("linf", eps, steps=9, schedule=schedule, restarts=3)
    x_adv = attack(Aim(network), x, y, draws(N))
    cosine = schedule == "cosine"
    broken = []
    for row in range(N):
        trace = Trace(network, x[row : row + 1], int(y[row]), eps)
        label = trace.y
        for restart in range(3):
            if trace.broken:
                break
            term = wrong(label) if restart == 1 else lambda z, label=label: -z[label]
            plan = [
                (true(label) if j == 0 else term, eps * (1 + cos(pi * j / 4) if cosine else 2)) for j in range(4)
            ] + [(gap(label), eps * (1 + cos(pi * j / 5) if cosine else 0.25)) for j in range(5)]
            trace.climb((trace.x + eps * uniform((1, 8, 8), row, "restart", restart)).clamp(0, 1), plan)
        torch.testing.assert_close(x_adv[row : row + 1], trace.best, rtol=0, atol=1e-12)
        broken.append(trace.broken)
    assert any(broken) == (eps > 0.01)


def test_step_sizes_of_the_published_settings() -> None:
    y = torch.zeros(1, dtype=torch.long)
    cosine, constant = (
        [
            stage.step_size * 255
            for stage in MarginDecomposition("linf", 8 / 255, schedule=s).stages(Aim(nn.Identity()), y, max)
        ]
        for s in ("cosine", "constant")
    )
    assert constant == pytest.approx([16] * 25 + [2] * 25)
    assert len(cosine) == 50 and cosine[:25] == pytest.approx(cosine[25:])
    assert cosine[0] == pytest.approx(16) and cosine[24] == pytest.approx(8 * (1 + cos(24 * pi / 25)))


class Imbalanced(nn.Module):
    """z_0 ripples steeply in every pixel, with troughs at a = −ε, 0 and ε; z_1 rises gently with their mean.

    The margin's gradient is the ripple's: it holds every pixel in the trough where it began, and the mean near 0. Only
    all pixels at ε make z_1 larger than the troughs of z_0.
    """

    EPS = 0.1

    def forward(self, x: Tensor) -> Tensor:
        a = (x.flatten(1) - 0.5) / self.EPS
        return torch.stack([1.5 - torch.cos(2 * pi * a).mean(dim=1), a.mean(dim=1)], dim=1)


def test_one_term_leads_out_of_where_the_other_holds_the_margin() -> None:
    x, y = torch.full((6, 1, 8, 8), 0.5, dtype=torch.float64), torch.zeros(6, dtype=torch.long)
    network = Imbalanced()
    margin = ODI("linf", Imbalanced.EPS, steps=50, diverse_steps=0, restarts=2)
    for attack, breaks in ((MarginDecomposition("linf", Imbalanced.EPS), True), (margin, False)):
        broken = network(attack(Aim(network), x, y, draws(6))).argmax(dim=1) == 1
        assert torch.equal(broken, torch.full_like(broken, breaks))


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.schedule"):
        MarginDecomposition("linf", 0.1, schedule="linear")
