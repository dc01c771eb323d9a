"""`GradientAttack`: closed forms on a linear model, stop rules, what is kept; momentum and backtracking, slowly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State, cross_entropy, margin
from atbench.errors import ConfigError
from atbench.models import Network
from tests.support.worlds import F64, attack, cnn, draws, linear, middle


def two_class(seed: int = 0) -> tuple[Network, Tensor]:
    """A linear model of two classes, and w = w_wrong − w_true for label 0."""
    network = linear(classes=2, seed=seed, scale=0.1)
    weight = network.head.weight.detach()
    return network, weight[1] - weight[0]


@pytest.mark.parametrize(
    ("steps", "step_size", "start"), [(1, 0.1, "zero"), (1, 0.2, "uniform"), (10, 0.03, "uniform")]
)
def test_linear_model_linf_is_exact(steps: int, step_size: float, start: str) -> None:
    """FGSM, one long step from anywhere and PGD all end at x + ε·sign(w): the margin grows by ε‖w‖₁."""
    network, w = two_class()
    x, _ = middle()
    y = torch.zeros(len(x), dtype=torch.long)
    search = attack(eps=0.1, steps=steps, step_size=step_size, start=start)
    x_adv = search(Objective(network, cross_entropy, y), x, rng=draws())
    torch.testing.assert_close(x_adv, x + 0.1 * w.sign().view(1, 1, 8, 8), rtol=0, atol=1e-12)
    gain = margin(network(x_adv), y) - margin(network(x), y)
    torch.testing.assert_close(gain, (0.1 * w.abs().sum()).expand(len(x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.5), (40, 0.2)])
def test_linear_model_l2_is_exact(steps: int, step_size: float) -> None:
    """From x itself: x + ε·w/‖w‖₂, the margin grows by ε‖w‖₂."""
    network, w = two_class()
    x, _ = middle()
    y = torch.zeros(len(x), dtype=torch.long)
    x_adv = attack(norm="l2", eps=0.5, steps=steps, step_size=step_size, start="zero")(Objective(network, margin, y), x)
    torch.testing.assert_close(x_adv, x + 0.5 * (w / w.norm()).view(1, 1, 8, 8), rtol=0, atol=1e-10)
    gain = margin(network(x_adv), y) - margin(network(x), y)
    torch.testing.assert_close(gain, (0.5 * w.norm()).expand(len(x)), rtol=0, atol=1e-10)


def test_linear_model_l1_spends_all_on_the_heaviest_pixel() -> None:
    network, w = two_class()
    x, _ = middle()
    y = torch.zeros(len(x), dtype=torch.long)
    x_adv = attack(norm="l1", eps=0.3, steps=20, step_size=0.1, start="zero")(Objective(network, margin, y), x)
    gain = margin(network(x_adv), y) - margin(network(x), y)
    torch.testing.assert_close(gain, (0.3 * w.abs().max()).expand(len(x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
def test_radius_per_example_is_kept(norm: str, start: str) -> None:
    network, (x, y) = cnn(), middle()
    eps = torch.linspace(0, 0.4, len(x), dtype=F64)
    search = attack(norm=norm, start=start, steps=4)
    x_adv = search(Objective(network, cross_entropy, y), x, eps=eps, step_size=eps / 2, rng=draws())
    assert (search.ball.norm(x_adv - x) <= eps + 1e-12).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    torch.testing.assert_close(x_adv[0], x[0], rtol=0, atol=1e-15)
    assert (search.ball.norm(x_adv - x)[1:] > 0).all()


def test_radius_per_example_is_the_radius_of_each_alone() -> None:
    network, (x, y) = cnn(), middle(4)
    eps = torch.tensor([0.0, 0.05, 0.1, 0.2], dtype=F64)
    joint = attack(start="zero")(Objective(network, cross_entropy, y), x, eps=eps)
    for i in range(4):
        row = slice(i, i + 1)
        alone = attack(start="zero")(Objective(network, cross_entropy, y[row]), x[row], eps=float(eps[i]))
        torch.testing.assert_close(joint[row], alone, rtol=0, atol=1e-14)


def test_no_steps() -> None:
    network, (x, y) = cnn(), middle()
    assert torch.equal(attack(steps=0, start="zero")(Objective(network, cross_entropy, y), x), x)
    started = attack(steps=0)(Objective(network, cross_entropy, y), x, rng=draws())
    assert (started - x).abs().max() <= 0.1 and not torch.equal(started, x)


def test_corner_start_is_a_corner() -> None:
    network, (x, y) = cnn(), middle()
    x_adv = attack(steps=0, start="corner")(Objective(network, cross_entropy, y), x, rng=draws())
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, 0.1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("start", ["uniform", "corner", "gaussian"])
def test_the_first_gradient_is_taken_where_an_unclipped_start_lies(start: str) -> None:
    x = torch.stack([torch.zeros(1, 8, 8, dtype=F64), torch.ones(1, 8, 8, dtype=F64)])
    seen: list[Tensor] = []

    def network(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return cnn()(z)

    for clip in (False, True):
        seen.clear()
        search = attack(start=start, clip_start=clip, steps=2)
        x_adv = search(Objective(network, cross_entropy, torch.arange(2)), x, rng=draws())
        outside = (seen[0] < 0) | (seen[0] > 1)
        assert bool(outside.any()) == (not clip) and (start == "gaussian" or (seen[0] - x).abs().max() > 0.09)
        assert all(bool((z >= 0).all()) and bool((z <= 1).all()) for z in (seen[1], x_adv))


@pytest.mark.parametrize("keep", ["last", "best", "first"])
def test_a_start_outside_the_box_is_never_returned(keep: str) -> None:
    """TRADES' start is x + noise, unclipped; an example that is done before the first step must be legal still."""
    network, y = cnn(), torch.arange(6) % 3
    x = torch.zeros((6, 1, 8, 8), dtype=F64)
    search = attack(start="gaussian", return_point=keep, eps=1e-4, step_size=1e-4)
    x_adv = search(
        Objective(network, cross_entropy, y), x, rng=draws(), stop=lambda s: torch.ones_like(s.rows, dtype=torch.bool)
    )
    assert x_adv.min() >= 0 and (x_adv - x).abs().max() <= 1e-4


def slow(search: GradientAttack, network: Network, x: Tensor, y: int, begin: Tensor) -> list[tuple[float, Tensor]]:
    """One example, a plain loop over the L∞ formula: the points that were accepted, and their values."""
    point, step, velocity = begin.clone(), search.step_size, torch.zeros_like(x)
    kept: tuple[float, Tensor, Tensor] | None = None
    trace = []
    for t in range(search.steps + 1):
        z = point.clone().requires_grad_()
        value = torch.nn.functional.cross_entropy(network(z[None]), torch.tensor([y]))
        (grad,) = torch.autograd.grad(value, z)
        if search.backtrack and kept is not None and value.item() < kept[0]:
            step, (_, point, grad) = step / search.backtrack, kept
            trace.append((kept[0], point))
        else:
            kept = (value.item(), point, grad)
            trace.append((value.item(), point))
        if t == search.steps:
            break
        if search.momentum:
            velocity = search.momentum * velocity + grad / grad.abs().mean()
            grad = velocity
        point = torch.max(torch.min(point + step * grad.sign(), x + search.eps), x - search.eps).clamp(0, 1)
    return trace


PLAIN = [{}, {"momentum": 1.0}, {"momentum": 0.5}]
BACKTRACKING = [{"backtrack": 2.0}, {"backtrack": 1.5, "momentum": 0.9}]


@pytest.mark.parametrize(
    ("settings", "keep"),
    [*((settings, "last") for settings in PLAIN), *((settings, "best") for settings in [*PLAIN, *BACKTRACKING])],
    ids=str,
)
def test_against_a_slow_loop(settings: dict[str, Any], keep: str) -> None:
    network, (x, y) = cnn(seed=3), middle(6)
    x = x * 2 - 0.5  # towards the edges of the box
    search = attack(steps=6, step_size=0.07, start="zero", return_point=keep, **settings)
    x_adv = search(Objective(network, cross_entropy, y), x)
    for i in range(len(x)):
        trace = slow(search, network, x[i], int(y[i]), x[i])
        expected = trace[-1][1] if keep == "last" else max(trace, key=lambda pair: pair[0])[1]
        torch.testing.assert_close(x_adv[i], expected, rtol=0, atol=1e-12)


def test_momentum_turns_with_the_sum_of_gradients() -> None:
    """Two steps past the top of a parabola: without momentum the second goes back, with μ = 2 it does not."""
    x = torch.full((1, 1, 1, 1), 0.5, dtype=F64)

    def value(outputs: Tensor) -> Tensor:
        return -((outputs - 0.55) ** 2).flatten(1).sum(dim=1)

    objective = Objective(lambda z: z, value)
    plain = attack(eps=0.5, step_size=0.1, steps=2, start="zero", momentum=0.0)(objective, x)
    heavy = attack(eps=0.5, step_size=0.1, steps=2, start="zero", momentum=2.0)(objective, x)
    assert plain.item() == pytest.approx(0.5, abs=1e-12) and heavy.item() == pytest.approx(0.7, abs=1e-12)


def done_when_wrong(state: State, y: Tensor) -> Tensor:
    return state.outputs.argmax(dim=1) != y[state.rows]


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        *(({}, keep) for keep in ("last", "best", "first")),
        *(({"momentum": 0.9}, keep) for keep in ("last", "best", "first")),
        ({"noise": 0.01}, "last"),
        *(({"backtrack": 2.0}, keep) for keep in ("best", "first")),
    ],
    ids=str,
)
def test_dropping_finished_rows_changes_nothing(
    settings: dict[str, Any], keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Re-packed at every hit, never, or by the default: the same points to the bit, in the same order."""
    from atbench.attacks.ascent import loop as module

    network, (x, y) = linear(scale=0.2), middle(24)
    results, calls = [], []
    for share in (0.0, 0.25, 2.0):
        monkeypatch.setattr(module, "REPACK", share)
        counted: list[int] = []

        def network_counted(z: Tensor, counted: list[int] = counted) -> Tensor:
            counted.append(len(z))
            out: Tensor = network(z)
            return out

        search = attack(steps=10, step_size=0.01, start="zero", return_point=keep, **settings)
        objective = Objective(network_counted, cross_entropy, y)
        results.append(search(objective, x, stop=lambda state: done_when_wrong(state, y), rng=draws()))
        calls.append(sum(counted))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-14)
    assert calls[0] <= calls[1] < calls[2]


def test_first_is_the_first_point_that_the_rule_named() -> None:
    """An example stops where it was first misclassified, as a slow search of that example alone finds."""
    network, (x, y) = linear(scale=0.2), middle(12)
    search = attack(steps=10, step_size=0.01, start="zero", return_point="first")
    x_adv = search(Objective(network, cross_entropy, y), x, stop=lambda state: done_when_wrong(state, y))
    broken = network(x_adv).argmax(dim=1) != y
    assert broken.any() and not (network(x).argmax(dim=1) != y).all()
    for i in range(len(x)):
        points = [point for _, point in slow(search, network, x[i], int(y[i]), x[i])]
        wrong = [point for point in points if network(point[None]).argmax() != y[i]]
        assert bool(broken[i]) == bool(wrong)
        torch.testing.assert_close(x_adv[i], wrong[0] if wrong else points[-1], rtol=0, atol=1e-12)


def test_everyone_done_at_the_start_costs_one_pass() -> None:
    network, (x, y) = cnn(), middle()
    passes = []

    def counted(z: Tensor) -> Tensor:
        passes.append(len(z))
        out: Tensor = network(z)
        return out

    x_adv = attack(start="zero")(
        Objective(counted, cross_entropy, y), x, stop=lambda s: torch.ones_like(s.rows, dtype=torch.bool)
    )
    assert torch.equal(x_adv, x) and passes == [len(x)]


@pytest.mark.parametrize(("keep", "passes"), [("last", 3), ("best", 4), ("first", 4)])
def test_passes_through_the_network(keep: str, passes: int) -> None:
    """k for the papers' PGD; one more where the last point has to be looked at."""
    network, (x, y) = cnn(), middle()
    count = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        out: Tensor = network(z)
        return out

    attack(return_point=keep)(Objective(counted, cross_entropy, y), x, rng=draws())
    assert count == passes


def test_no_gradient_reaches_the_parameters_or_the_result() -> None:
    network, (x, y) = cnn(), middle()
    x_adv = attack()(Objective(network, cross_entropy, y), x.requires_grad_(), rng=draws())
    assert not x_adv.requires_grad and all(p.grad is None for p in network.parameters()) and x.grad is None


def test_search_works_inside_no_grad() -> None:
    network, (x, y) = cnn(), middle()
    outside = attack()(Objective(network, cross_entropy, y), x, rng=draws())
    with torch.no_grad():
        inside = attack()(Objective(network, cross_entropy, y), x, rng=draws())
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(("key", "value"), [("start", "unform"), ("return_point", "all"), ("norm", "l7")])
def test_unknown_settings_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key}"):
        attack(**{key: value})
