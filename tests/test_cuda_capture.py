"""Searches as CUDA graphs on a CUDA device, to the last bit what they are without; `make gpu` runs these."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.models.replay import Replay
from scripts.gpu.capture import deterministic
from tests.support.cuda import NEEDS_CUDA, trained

pytestmark = NEEDS_CUDA


def captured_or_not(capture: bool, words: tuple[str, ...]) -> tuple[dict[str, Any], Replay | None]:
    trainer = trained(6, *words, f"train.capture={str(capture).lower()}")
    return trainer.state()["method"], trainer.method.attack.replay


@pytest.mark.parametrize(
    "words",
    [
        ("method=pgd_at",),
        ("method=trades",),
        ("method=mart",),
        ("method=cfa",),  # a radius for each example
        ("method=rebat",),
        ("method=pgd_at", "attack.bn=train"),
        ("method=pgd_at", "attack.norm=l2", "attack.eps=0.5", "attack.step_size=0.2", "attack.momentum=0.9"),
        ("method=pgd_at", "attack.norm=l1", "attack.eps=2", "attack.step_size=1"),
        ("method=trades", "train.precision.attack=bf16"),
    ],
    ids=lambda words: " ".join(words),
)
@deterministic()
def test_captured_equals_eager_bit_for_bit(words: tuple[str, ...]) -> None:
    plain, none = captured_or_not(False, words)
    captured, replay = captured_or_not(True, words)
    assert none is None and replay is not None and replay.graphs and not replay.off
    assert all(torch.equal(value, captured[key]) for key, value in plain.items())


def test_a_search_that_waits_for_the_device_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    replay = Replay()
    for i in range(4):
        x = torch.full((2,), float(i), device="cuda")
        assert replay("key", lambda x: x * float(x.sum()), x).tolist() == [2.0 * i * i] * 2
    assert replay.off and capsys.readouterr().err.count("\n") == 1


def test_a_search_whose_network_draws_runs_as_it_is() -> None:
    replay, dropout = Replay(), torch.nn.Dropout(0.5)
    outputs = {tuple(replay("key", dropout, torch.ones(64, device="cuda")).tolist()) for _ in range(5)}
    assert len(outputs) == 5 and not replay.graphs
