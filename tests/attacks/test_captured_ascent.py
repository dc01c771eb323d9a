"""Searches as graphs: bit-equal to plain ones, whatever changes between the calls; and which searches are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, SelfLabelled, cross_entropy, kl_from, losses, margin
from atbench.models import CNN, attack_mode
from atbench.models.replay import Replay
from tests.support.fake_graphs import FakeGraph, Pure, install
from tests.support.worlds import draws

STEPS = 3


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    return install(monkeypatch)


def network(**options: Any) -> CNN:
    torch.manual_seed(0)
    return CNN((1, 8, 8), 4, (0.5,), (0.5,), width=4, **options)


def search(replay: Replay | None = None, **changes: Any) -> GradientAttack:
    attack = GradientAttack(**{"norm": "linf", "eps": 0.1, "steps": STEPS, "step_size": 0.04, **changes})
    attack.replay = replay
    return attack


def batch(i: int, n: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(i)
    return torch.rand(n, 1, 8, 8, generator=rng), torch.randint(0, 4, (n,), generator=rng)


def moved(model: nn.Module, i: int) -> None:
    """Move the weights in place, as an optimizer does."""
    rng = torch.Generator().manual_seed(100 + i)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.01)


def points(attack: GradientAttack, model: nn.Module, value: Callable[..., Tensor], **options: Any) -> list[Tensor]:
    """x_adv of six batches, the weights moving between them. An option that is a function is one of the batch."""
    found = []
    for i in range(6):
        x, y = batch(i)
        args = model(x).detach().softmax(dim=1) if value is kl_from else y
        own = {name: option(i) if callable(option) else option for name, option in options.items()}
        with attack_mode(model, attack.bn):
            found.append(attack(Objective(model, value, args), x, rng=draws(), **own))
        moved(model, i)
    return found


def check(value: Callable[..., Tensor], options: dict[str, Any], model: dict[str, Any], **changes: Any) -> None:
    replay = Replay()
    plain = points(search(**changes), network(**model), value, **options)
    captured = points(search(replay, **changes), network(**model), value, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    assert len(replay.graphs) == 1 and len({each.sum().item() for each in captured}) == 6
    (graph,) = replay.graphs.values()
    assert graph.graph.replays == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"momentum": 0.9},
        {"rule": "averaged", "momentum": 0.5},
        {"rule": "adam"},
        {"rule": "summed"},
        {"rule": "gradient"},
        {"zeroed": 0.3},
        {"project": False},
    ],
    ids=str,
)
def test_every_step_rule_is_the_plain_one(graphs: list[FakeGraph], norm: str, rule: dict[str, Any]) -> None:
    check(cross_entropy, {}, {}, norm=norm, **rule)


@pytest.mark.parametrize(
    "value",
    [
        cross_entropy,
        kl_from,
        margin,
        losses.dlr,
        losses.carlini,
        losses.confidence,
        nn.CrossEntropyLoss(reduction="none"),
    ],
)
def test_every_objective_is_the_plain_one(graphs: list[FakeGraph], value: Callable[..., Tensor]) -> None:
    check(value, {}, {})


RADII = torch.linspace(0, 0.2, 6)


@pytest.mark.parametrize(
    "options",
    [
        {"eps": lambda i: 0.01 * (i + 1)},
        {"step_size": lambda i: 0.01 * (i + 1)},
        {"eps": lambda i: RADII.roll(i), "step_size": lambda i: RADII.roll(i) / 3},
        {"start": lambda i: batch(50 + i)[0]},
    ],
    ids=["schedule of eps", "schedule of lengths", "per example", "given start"],
)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_changes_with_the_batch_is_an_input(graphs: list[FakeGraph], norm: str, options: dict[str, Any]) -> None:
    check(cross_entropy, options, {}, norm=norm)


@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian", "corner"])
def test_starts_are_drawn_as_ever(graphs: list[FakeGraph], start: str) -> None:
    check(kl_from, {}, {}, start=start)


@pytest.mark.parametrize("bn", ["eval", "train", "batch"])
def test_batchnorm_and_what_it_remembers(graphs: list[FakeGraph], bn: str) -> None:
    plain, captured = network(norm="batch"), network(norm="batch")
    replay = Replay()
    first = points(search(bn=bn), plain, cross_entropy)
    second = points(search(replay, bn=bn), captured, cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and len(replay.graphs) == 1
    for name, value in plain.state_dict().items():
        assert torch.equal(value, captured.state_dict()[name]), name
    assert (captured.stages[1][0].num_batches_tracked > 6) == (bn == "train")


def test_autocast(graphs: list[FakeGraph]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(cross_entropy, {}, {})


def test_modes_and_steps_have_graphs_of_their_own(graphs: list[FakeGraph]) -> None:
    model, attack = network(norm="batch"), search(Replay(), start="zero")
    plain = search(start="zero")
    for mode in ("eval", "batch"):
        for steps in (1, 2):
            for i in range(4):
                x, y = batch(i)
                objective = Objective(model, cross_entropy, y)
                with attack_mode(model, mode):
                    assert torch.equal(attack(objective, x, steps=steps), plain(objective, x, steps=steps))
    assert len(graphs) == 4


def test_replaced_weights_are_never_the_old_ones(graphs: list[FakeGraph]) -> None:
    model, attack, plain = network(), search(Replay(), start="zero"), search(start="zero")
    for i in range(12):
        x, y = batch(i)
        objective = Objective(model, cross_entropy, y)
        assert torch.equal(attack(objective, x), plain(objective, x))
        if i % 4 == 3:
            for parameter in model.parameters():
                parameter.data = torch.randn_like(parameter)
    assert len(graphs) == 3


def test_a_changed_setting_is_another_graph(graphs: list[FakeGraph]) -> None:
    model, attack, plain = network(), search(Replay(), start="zero"), search(start="zero")
    for momentum in (0.0, 0.9):
        attack.momentum = plain.momentum = momentum
        for i in range(3):
            x, y = batch(i)
            assert torch.equal(attack(Objective(model, margin, y), x), plain(Objective(model, margin, y), x))
    assert len(graphs) == 2


@dataclass
class Shifted(Objective):
    shift: float = 0.0


class Holder(nn.Module):
    def method(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y)


def ineligible(model: CNN, y: Tensor) -> dict[str, Objective]:
    hooked = network()
    hooked.head.register_forward_hook(lambda module, inputs, output: output)
    return {
        "closure": Objective(model, lambda logits, _: cross_entropy(logits, y), y),
        "default": Objective(model, lambda logits, y=y: cross_entropy(logits, y)),
        "partial": Objective(model, partial(cross_entropy, y=y)),
        "method": Objective(model, Holder().method, y),
        "network": Objective(lambda x: model(x), cross_entropy, y),
        "features": Objective(model.features, kl_from, y),
        "subclass": Shifted(model, cross_entropy, y),
        "self-labelled": SelfLabelled(model, cross_entropy, lambda logits: logits.argmax(dim=1)),
        "hooks": Objective(hooked, cross_entropy, y),
    }


@pytest.mark.parametrize("name", list(ineligible(network(), torch.zeros(1))))
def test_an_objective_that_may_hold_a_batch_is_not_captured(name: str) -> None:
    model = network()
    assert Objective(model, cross_entropy, torch.zeros(1)).modules() == [model]
    assert ineligible(model, torch.zeros(1))[name].modules() is None


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"return_point": "best"}, {}),
        ({"return_point": "first"}, {}),
        ({"noise": 0.1}, {}),
        ({"decay": 1.0}, {}),
        ({}, {"stop": lambda state: state.outputs.argmax(dim=1) == 0}),
        ({}, {"steps": 0}),
    ],
    ids=["best", "first", "noise", "decay", "stop", "no step"],
)
def test_other_searches_are_not_captured(
    graphs: list[FakeGraph], changes: dict[str, Any], options: dict[str, Any]
) -> None:
    model, replay, (x, y) = network(), Replay(), batch(0)
    for _ in range(3):
        ours, plain = (
            search(each, **changes)(Objective(model, cross_entropy, y), x, rng=draws(), **options)
            for each in (replay, None)
        )
        assert torch.equal(ours, plain)
    assert not graphs and not replay.seen


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plain_search_makes_no_tensor_of_a_number_either(norm: str) -> None:
    """With numbers as radius and length: a device that copies one waits at every step."""
    model, (x, y) = network(norm="batch"), batch(0)
    for rule in ({}, {"momentum": 0.9}, {"rule": "averaged"}, {"rule": "adam"}, {"zeroed": 0.3}):
        with attack_mode(model, "eval"), Pure():
            search(norm=norm, start="zero", **rule)(Objective(model, cross_entropy, y), x)
    with pytest.raises(RuntimeError, match="not permitted"), Pure():
        torch.tensor(0.5)
    with pytest.raises(RuntimeError, match="not permitted"), Pure():
        float(x.sum())
