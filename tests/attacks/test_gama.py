"""GAMA-PGD against its formula; its schedules by hand."""

from __future__ import annotations

import pytest
import torch

from atbench.attacks import ball
from atbench.attacks.gradient.gama import GAMA, Guided, probability_margin
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, draws, images
from tests.support.traces import N, Trace, uniform, world, wrong


@pytest.mark.parametrize("reference", ["start", "clean"])
def test_agrees_with_the_formula(reference: str) -> None:
    """20 steps: λ falls over 5, the step shrinks after 12 and after 17."""
    network, x, y = world()
    eps, answers = 0.012, []
    attack = GAMA("linf", eps, steps=20, rel_step_size=0.5, drop=4.0, guide=30.0, reference=reference, restarts=2)
    x_adv = attack(Aim(network), x, y, draws(N))
    for row in range(N):
        trace = Trace(network, x[row : row + 1], int(y[row]), eps)
        for restart in range(2):
            if trace.broken:
                break
            start = trace.x + eps * uniform((1, 8, 8), row, "restart", restart).sign()
            start = start.clamp(0, 1)
            p = network(start if reference == "start" else trace.x)[0].softmax(dim=0).detach()
            plan = []
            for step in range(20):
                weight = 30 * max(0.0, 1 - step / 5)

                def value(z: torch.Tensor, weight: float = weight, p: torch.Tensor = p, y: int = trace.y):
                    q = z.softmax(dim=0)
                    return wrong(y)(q) - q[y] + weight * ((q - p) ** 2).sum()

                plan.append((value, 0.5 * eps / (1 if step < 12 else 4 if step < 17 else 16)))
            trace.climb(start, plan)
        torch.testing.assert_close(x_adv[row : row + 1], trace.best, rtol=0, atol=1e-12)
        answers.append(trace.broken)
    assert any(answers) and not all(answers)


def test_the_published_schedule() -> None:
    y = torch.tensor([0, 1])
    stages = GAMA("linf", 8 / 255)._stages(Aim(Linear()), y, None)
    assert [stage.steps for stage in stages] == [60, 25, 15]
    assert [stage.step_size * 255 for stage in stages] == pytest.approx([16, 1.6, 0.16])
    guided = stages[0].objective(torch.arange(2))
    assert isinstance(guided, Guided) and (guided.weight, guided.over) == (50, 25)


def test_the_guide_is_the_squared_distance_from_the_first_point() -> None:
    network = Linear()
    x, y = images(network, n=4)
    objective = Guided(Aim(network), y, weight=50.0, over=25, reference=None)
    plain = probability_margin(network(x), y)
    torch.testing.assert_close(objective(x)[0], plain)
    there, rows = x[2:] + 0.05, torch.tensor([2, 3])
    p, q = network(x[2:]).softmax(1), network(there).softmax(1)
    q_wrong = q.scatter(1, y[2:, None], 0).amax(1)
    expected = q_wrong - q.gather(1, y[2:, None])[:, 0] + 50 * (1 - 10 / 25) * ((p - q) ** 2).sum(1)
    torch.testing.assert_close(objective(there, rows, 10)[0], expected)
    torch.testing.assert_close(objective(there, rows, 25)[0], probability_margin(network(there), y[2:]))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l1", 2.0)])
def test_other_norms_start_inside_the_ball(norm: str, eps: float) -> None:
    network = Linear()
    x, y = images(network)
    seen = []

    class Spy(Aim):
        def logits(self, x_adv: torch.Tensor) -> torch.Tensor:
            seen.append(x_adv.detach().clone())
            return super().logits(x_adv)

    GAMA(norm, eps, steps=1, restarts=1)(Spy(network), x, y, draws(len(x)))
    radius = ball(norm).norm(seen[0] - x)
    assert (radius <= eps * (1 + 1e-9)).all() and radius.min() > 0


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.reference"):
        GAMA("linf", 0.1, reference="noise")
