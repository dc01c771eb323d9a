"""What CUDA's libraries are told: in training as configured, exact wherever something is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atbench.evaluation import EvalModel
from atbench.models.cuda_settings import cuda_settings
from tests.support.contract import ALONE, Log, trainer_of


def told() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    return (*(place.fp32_precision for place in places), cudnn.benchmark)


EXACT = ("ieee",) * 3


def test_a_block_is_left_as_it_was_entered() -> None:
    before = told()
    with pytest.raises(RuntimeError, match="inside"), cuda_settings("tf32", benchmark=True):
        assert told() == ("tf32", "tf32", "tf32", True)
        with cuda_settings("ieee"):
            assert told() == (*EXACT, False)
        assert told() == ("tf32", "tf32", "tf32", True)
        raise RuntimeError("inside")
    assert told() == before


@pytest.mark.parametrize("tf32", [False, True])
def test_training_is_as_configured_and_measurements_are_exact(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, measured, before = list[Any](), list[Any](), told()
    words = (f"train.precision.tf32={str(tf32).lower()}", "train.epochs=1", "attack.steps=1", "guard.every=2")
    trainer = trainer_of("pgd_at", ALONE, Log(), *words)
    train_batch, logits = trainer.train_batch, EvalModel.logits
    monkeypatch.setattr(trainer, "train_batch", lambda: (steps.append(told()), train_batch()))
    monkeypatch.setattr(EvalModel, "logits", lambda *args: (measured.append(told()), logits(*args))[1])
    trainer.fit()
    assert set(steps) == {(("tf32" if tf32 else "ieee",) * 3) + (True,)}
    assert measured and set(measured) == {(*EXACT, False)}
    assert told() == before


@pytest.mark.parametrize("ask", ["use_deterministic_algorithms", "cudnn"])
def test_where_determinism_is_asked_for_no_algorithm_is_timed(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("standard", ALONE, Log(), "train.epochs=1")
    seen = []
    train_batch = trainer.train_batch
    monkeypatch.setattr(trainer, "train_batch", lambda: (seen.append(told()[-1]), train_batch()))
    if ask == "cudnn":
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    else:
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    trainer.fit()
    assert set(seen) == {False}


def test_an_evaluation_is_exact_whatever_was_set() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with cuda_settings("tf32", benchmark=True), EvalModel(network, 8).ready():
        assert told() == (*EXACT, False)
