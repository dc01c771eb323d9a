"""The gradient-ascent loop by hand: what is returned, what is dropped, what is averaged; objectives of second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import Objective, State, ball
from atbench.attacks.ascent import loop
from atbench.attacks.ascent.gradient_ascent import FixedSteps
from atbench.attacks.ascent.loop import Ascent, Stepper, where
from atbench.attacks.norms.lp_ball import Radius
from atbench.errors import ConfigError
from tests.support.worlds import F64, attack, draws

#: Steps of three examples from 0, up −(x − 0.2)²: the best points are 0.2, 0.2 and 0.21.
SIZES = torch.tensor([0.1, 0.1, 0.07], dtype=F64).view(3, 1, 1, 1)
#: An example is finished from here on: the first after one step, the second after three, the third never.
BOUNDS = torch.tensor([0.05, 0.25, 1.0], dtype=F64)


class Right(Stepper):
    """Steps of one size an example, whatever the gradient."""

    def __init__(self) -> None:
        self.sizes, self.counts = SIZES, [3]

    def step(self, x_adv: Tensor, grad: Tensor, sizes: Radius) -> Tensor:
        assert len(x_adv) == len(grad) == len(self.sizes)
        return x_adv + sizes

    def take(self, live: Tensor) -> None:
        self.sizes = self.sizes[live]
        self.counts.append(len(self.sizes))


def parabola(z: Tensor) -> Tensor:
    return -((z - 0.2) ** 2).flatten(1).sum(dim=1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2.0])
@pytest.mark.parametrize(
    ("point", "returned", "known"),
    [
        ("last", [0.1, 0.3, 0.28], [True, True, False]),
        ("first", [0.1, 0.3, 0.28], [True, True, True]),
        ("best", [0.1, 0.2, 0.21], [True, True, True]),
        ("first_or_best", [0.1, 0.3, 0.21], [True, True, True]),
    ],
)
def test_what_is_returned_of_each_example(
    point: str, returned: list[float], known: list[bool], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPACK", share)
    passes, x = [], torch.zeros((3, 1, 1, 1), dtype=F64)

    def network(z: Tensor) -> Tensor:
        passes.append(len(z))
        return z

    stepper = Right()
    ascent = Ascent(
        Objective(network, parabola),
        x,
        ball("linf"),
        0.9,
        stepper,
        4,
        lambda s: s.x_adv.flatten() > BOUNDS[s.rows],
        point,
    )
    result = ascent.run(x)
    expected = torch.tensor(returned, dtype=F64)
    torch.testing.assert_close(result.x_adv.flatten(), expected, rtol=0, atol=1e-12)
    values = torch.where(torch.tensor(known), -((expected - 0.2) ** 2), -torch.inf)
    torch.testing.assert_close(result.value, values, rtol=0, atol=1e-12)
    assert result.done.tolist() == [True, True, False]
    looks = 4 if point == "last" else 5
    assert passes == {2.0: [3] * 5, 0.5: [3, 3, 3, 3, 1]}.get(share, [3, 3, 2, 2, 1])[:looks]


def test_steps_go_no_further_than_the_ball() -> None:
    x = torch.full((3, 1, 1, 1), 0.85, dtype=F64)
    for eps, reached in ((0.1, [0.95] * 3), (0.9, [1.0] * 3)):
        result = Ascent(Objective(lambda z: z, parabola), x, ball("linf"), eps, Right(), 4).run(x)
        torch.testing.assert_close(result.x_adv.flatten(), torch.tensor(reached, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("point", ["last", "best", "first"])
def test_no_image_is_no_forward(point: str) -> None:
    def network(z: Tensor) -> Tensor:
        raise AssertionError("there is nothing to forward")

    x = torch.zeros((0, 1, 2, 2), dtype=F64)
    assert attack(steps=2, return_point=point)(Objective(network, parabola), x, rng=draws()).shape == x.shape


def test_objective_outputs_and_gradient_are_means_over_the_samples() -> None:
    slopes = iter([1.0, 2.0, 6.0, 0.0, 0.0, 0.0])
    objective = Objective(lambda z: next(slopes) * z.flatten(1), lambda z: z.sum(dim=1))
    x, states = torch.full((2, 1, 1, 1), 0.5, dtype=F64), []

    def stop(state: State) -> Tensor:
        states.append(state)
        return torch.zeros(2, dtype=torch.bool)

    stepper = FixedSteps(ball("linf").ascend, 0.1)
    Ascent(objective, x, ball("linf"), 0.1, stepper, 1, stop, "best", eot_samples=3).run(x)
    first = states[0]
    assert first.grad is not None and first.value.tolist() == first.outputs.flatten().tolist() == [1.5, 1.5]
    assert first.grad.flatten().tolist() == [3.0, 3.0]


def test_states_merge_row_by_row() -> None:
    def state(step: int, number: float, outputs: object) -> State:
        full = torch.full((2, 1, 1, 1), number)
        return State(step, torch.arange(2), full, full.flatten(), outputs, full)

    merged = where(torch.tensor([True, False]), state(2, 2.0, "new"), state(1, 1.0, "old"))
    assert merged.step == 2 and merged.outputs == "new" and merged.grad is not None
    for part in (merged.x_adv, merged.value, merged.grad):
        assert part.flatten().tolist() == [2.0, 1.0]


class SquaredSlope(Objective):
    """‖∇ Σ (x' − ½)⁴ / 4‖² = Σ (x' − ½)⁶, for pixels above ½ largest at the upper edge of the ball."""

    second_order = True

    def __init__(self) -> None:
        super().__init__(lambda z: z, lambda z: ((z - 0.5) ** 4 / 4).flatten(1).sum(dim=1))

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        value, outputs = super().__call__(x_adv, rows, step)
        (slope,) = torch.autograd.grad(value.sum(), x_adv, create_graph=True)
        return slope.square().flatten(1).sum(dim=1), outputs


@pytest.mark.parametrize("point", ["last", "best", "first"])
def test_an_objective_may_differentiate_a_gradient(point: str) -> None:
    """The last point is evaluated without a gradient of the objective; its own gradient is needed there too."""
    x = torch.full((2, 1, 2, 2), 0.6, dtype=F64)
    search = attack(eps=0.1, step_size=0.05, steps=2, start="zero", return_point=point)
    with torch.no_grad():
        x_adv = search(SquaredSlope(), x)
        stepper = FixedSteps(ball("linf").ascend, 0.05)
        result = Ascent(SquaredSlope(), x, ball("linf"), 0.1, stepper, 2, return_point=point).run(x)
    torch.testing.assert_close(x_adv, x + 0.1, rtol=0, atol=1e-12)
    assert not x_adv.requires_grad and not result.value.requires_grad
    if point != "last":
        torch.testing.assert_close(result.value, torch.full((2,), 4 * 0.2**6, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("point", ["last", "best"])
def test_bf16_is_refused_where_a_gradient_is_differentiated(point: str) -> None:
    x = torch.full((2, 1, 2, 2), 0.6)
    search = attack(eps=0.1, step_size=0.05, steps=2, start="zero", return_point=point)
    message = r"train\.precision\.attack: bf16 — the attack's objective differentiates a gradient; use fp32"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ConfigError, match=message):
            search(SquaredSlope(), x)
        search(Objective(lambda z: z, parabola), x)  # of first order
    search(SquaredSlope(), x)
