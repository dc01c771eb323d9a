"""The average of weights that a method trains with, and that a method's average is what is evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atbench.methods.weight_average import WeightAverage
from tests.support import worlds
from tests.support.contract import ALONE, Log, trainer_of


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Other weights, and running statistics of other images."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
        model.train()(torch.rand((6, *worlds.SHAPE), generator=rng, dtype=torch.float64))
    return model


def floats(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}


def test_by_hand_with_running_statistics() -> None:
    model = worlds.cnn(norm="batch")
    average, expected = WeightAverage(model), floats(model)
    assert worlds.same(floats(average.network), expected), "it begins as the model"
    for seed, decay in ((1, 0.9), (2, 0.3), (3, 0.99)):
        values = floats(moved(model, seed))
        average.follow(model, decay)
        expected = {name: decay * old + (1 - decay) * values[name] for name, old in expected.items()}
        for name, value in floats(average.network).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-14)
    assert any("running_var" in name for name in expected)


def test_decay_0_is_a_copy_and_the_average_is_apart_and_frozen() -> None:
    model = worlds.cnn(norm="batch")
    average = WeightAverage(model)
    before = floats(average.network)
    moved(model, 1)
    assert worlds.same(floats(average.network), before), "no storage is shared"
    average.follow(model, 0.0)
    assert worlds.same(average.network.state_dict(), model.state_dict())
    average.train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters()) and all(
        parameter.requires_grad for parameter in model.parameters()
    )


@pytest.mark.parametrize("name", ["adr", "rebat", "seat"])
def test_what_is_validated_kept_and_evaluated_is_the_average(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    trainer = trainer_of(name, ALONE, log, "model.norm=batch")
    seen: list[nn.Module] = []
    inner = trainer.validation.figures

    def figures(network: nn.Module) -> dict[str, Any]:
        seen.append(network)
        return inner(network)

    monkeypatch.setattr(trainer.validation, "figures", figures)
    trainer.fit()
    average = trainer.method.average.network  # type: ignore[union-attr]
    assert seen and all(network is average for network in seen)
    kept, state = trainer.epoch_state()["model"], trainer.state()
    assert worlds.same(kept, average.state_dict()) and worlds.same(state["model"], kept)
    assert not worlds.same(kept, trainer.method.model.state_dict()), "they differ by now"
    assert not any(module.training for module in average.modules())


def test_an_average_of_plus_goes_before_it() -> None:
    trainer = trainer_of("seat", ALONE, Log(), "plus=ema")
    trainer.train_batch()
    with trainer.evaluated() as network:
        assert network is trainer.method.model
