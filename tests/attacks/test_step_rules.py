"""Step rules: beside torch's Adam, against their formulas; their memory follows the examples still searched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, margin
from atbench.attacks.ascent.step_rules import Adam, Averaged, Decaying, Momentum, Noisy, Rule
from atbench.attacks.norms.lp_ball import ball
from tests.support.worlds import attack, draws, linear

LENGTH = torch.tensor(0.1, dtype=torch.float64)


def gradients(count: int, n: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn((n, 1, 3, 3), generator=rng, dtype=torch.float64) for _ in range(count)]


def test_adam_is_torchs() -> None:
    point = torch.nn.Parameter(torch.full((4, 1, 3, 3), 0.5, dtype=torch.float64))
    optimizer = torch.optim.Adam([point], lr=0.1, betas=(0.9, 0.999), eps=1e-9, maximize=True)
    rule, ours = Adam(point.detach()), point.detach().clone()
    for grad in gradients(6):
        point.grad = grad.clone()
        optimizer.step()
        ours = rule(ours, grad, LENGTH)
        torch.testing.assert_close(ours, point.detach(), rtol=0, atol=1e-12)


def test_averaged_is_the_mean_of_the_directions() -> None:
    grads, x = gradients(3), torch.zeros((4, 1, 3, 3), dtype=torch.float64)
    rule = Averaged(ball("linf"), x, 0.9)
    last = [rule(x, grad, LENGTH) for grad in grads][-1]
    a, b, c = (grad.sign() for grad in grads)
    torch.testing.assert_close(last, 0.1 * 0.1 * (0.81 * a + 0.9 * b + c), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["momentum", "averaged", "adam", "noisy", "decaying"])
def test_what_is_remembered_follows_the_examples(name: str) -> None:
    """Two examples that are dropped on the way leave the others' paths as they were."""

    def make(like: Tensor) -> Rule:
        shape = ball("l2")
        rules: dict[str, Rule] = {
            "momentum": Momentum(shape, like, 0.9),
            "averaged": Averaged(shape, like, 0.9),
            "adam": Adam(like),
            "noisy": Noisy(shape.ascend, like, 0.1, draws()),
            "decaying": Decaying(Momentum(shape, like, 0.9), 0.5),
        }
        return rules[name]

    grads, x = gradients(5), torch.zeros((4, 1, 3, 3), dtype=torch.float64)
    whole, cut, live = make(x), make(x), torch.tensor([True, False, True, False])
    for number, grad in enumerate(grads):
        expected = whole(x, grad, LENGTH)[live]
        if number == 2:
            cut.take(live)
        found = cut(x, grad, LENGTH)[live] if number < 2 else cut(x[live], grad[live], LENGTH)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["gradient", "steepest"])
def test_steps_decay_with_their_number(rule: str, decay: float) -> None:
    """On a linear objective: x + step_size · (1 + 1/2^decay + 1/3^decay) · ∇, or its sign."""
    network, x = linear(classes=2, scale=0.1), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    w = (network.head.weight[1] - network.head.weight[0]).detach().view(1, 1, 8, 8)
    search = attack(steps=3, step_size=0.07, start="zero", rule=rule, decay=decay, project=False)
    found = search(Objective(network, margin, torch.zeros(2, dtype=torch.long)), x)
    total = 0.07 * sum(t**-decay for t in (1, 2, 3))
    way = w if rule == "gradient" else w.sign()
    torch.testing.assert_close(found, (x + total * way).expand(2, -1, -1, -1), rtol=0, atol=1e-14)
    assert rule == "gradient" or (found - x).abs().min() > search.eps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_search_without_a_ball_ends_at_the_box(norm: str) -> None:
    """Whatever `norm` and `eps` say: a long step along the gradient ends in the corner of the box."""
    network, x = linear(classes=2), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    w = (network.head.weight[1] - network.head.weight[0]).detach().view(1, 1, 8, 8)
    search = attack(norm=norm, eps=0.1, steps=1, step_size=1e4, start="zero", rule="gradient", project=False)
    found = search(Objective(network, margin, torch.zeros(2, dtype=torch.long)), x)
    torch.testing.assert_close(found, (w > 0).double().expand(2, -1, -1, -1), rtol=0, atol=1e-12)


def test_noise_is_added_before_the_projection_and_drawn_once_a_step() -> None:
    """Random numbers in this order: the start, then each step."""
    network, x = linear(classes=2), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    y, rng = torch.zeros(2, dtype=torch.long), draws()
    search = attack(steps=2, step_size=0.02, noise=0.05)
    expected = x + search.ball.sample(x, 0.1, rng)
    weight = network.head.weight.detach()
    for _ in range(2):
        moved = expected + 0.02 * (weight[1] - weight[0]).sign().view(1, 1, 8, 8) + 0.05 * rng.normal(x)
        expected = moved.clamp(x - 0.1, x + 0.1)
    found = search(Objective(network, margin, y), x, rng=draws())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert ((found - x).abs() < 0.1 - 1e-9).any()


def test_adams_first_step_is_a_sign_step() -> None:
    """m̂/√v̂ = g/|g| after one gradient: FGSM of the step's length, whatever the scale of the gradient."""
    network, x = linear(classes=2), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.long)
    settings = {"steps": 1, "start": "zero", "step_size": 0.03}
    adam, sign = (attack(**settings, rule=rule)(Objective(network, margin, y), x) for rule in ("adam", "steepest"))
    torch.testing.assert_close(adam, sign, rtol=0, atol=1e-8)
    assert (adam - x).abs().max() == pytest.approx(0.03, abs=1e-8)


def test_an_l1_step_moves_as_many_pixels_as_its_sparsity_says() -> None:
    network, x = linear(classes=2), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.long)
    for sparsity, moved in ((0.0, 1), (0.25, 16)):
        search = attack(norm="l1", eps=0.4, steps=1, step_size=0.4, start="zero", sparsity=sparsity)
        delta = search(Objective(network, margin, y), x) - x
        assert ((delta != 0).flatten(1).sum(dim=1) == moved).all()
        torch.testing.assert_close(delta.abs().flatten(1).sum(dim=1), torch.full((2,), 0.4, dtype=torch.float64))
