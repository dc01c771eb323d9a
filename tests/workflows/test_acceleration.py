"""`train.capture` and `train.compile`: trainings that come to the same, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from atbench.errors import ConfigError, Interrupted
from atbench.training import Trainer
from atbench.workflows.acceleration import accelerate
from tests.support.contract import ALONE, Log, trainer_of
from tests.support.fake_graphs import FakeGraph, install
from tests.support.tiers import METHODS

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
STEPS = 5


@contextmanager
def fakes() -> Iterator[list[FakeGraph]]:
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch)


def trained(trainer: Trainer) -> dict[str, Any]:
    with pytest.raises(Interrupted):
        trainer.fit()
    return trainer.state()["method"]


def short(name: str, *words: str) -> Trainer:
    return trainer_of(name, ALONE, Log(), *words, stop_after=STEPS)


def captured_is_plain(name: str) -> int:
    """Train a method with and without graphs, to the same weights; how many graphs there were."""
    plain = trained(short(name))
    with fakes() as graphs:
        trainer = short(name)
        accelerate(trainer.method, CUDA, "auto", compiled=False)
        captured = trained(trainer)
    assert plain.keys() == captured.keys() and all(torch.equal(value, captured[key]) for key, value in plain.items())
    assert all(graph.replays > 0 for graph in graphs)
    return len(graphs)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_a_captured_training_is_the_plain_one(name: str) -> None:
    captured_is_plain(name)


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "cfa"])
def test_searches_of_one_length_are_captured(name: str) -> None:
    assert captured_is_plain(name) == 1


def test_searches_of_several_norms_are_captured_each() -> None:
    assert captured_is_plain("multi_norm_avg") == 3


@pytest.mark.parametrize("name", ["fat", "dkl", "ccat", "llr"])
def test_searches_that_stop_or_hold_their_batch_are_not(name: str) -> None:
    assert captured_is_plain(name) == 0


@pytest.mark.parametrize(("name", "held"), [("dverge", 2), ("multi_norm_avg", 4)])
def test_one_place_for_the_graphs_of_a_method_where_there_is_cuda(name: str, held: int) -> None:
    """Of all its attacks: one beside the configured one, or one for each of three norms."""
    method = short(name).method
    attacks = method.attacks()
    assert len(attacks) == held and attacks[0] is method.attack
    for device, capture in ((CPU, "auto"), (CPU, False), (CUDA, False)):
        accelerate(method, device, capture, compiled=False)
        assert all(attack.replay is None for attack in attacks)
    accelerate(method, CUDA, True, compiled=False)
    assert attacks[0].replay is not None and all(attack.replay is attacks[0].replay for attack in attacks)


def test_graphs_without_cuda_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.capture: True .*use auto"):
        short("pgd_at", "train.capture=true")


class TestCompile:
    """Compiled as far as Dynamo goes, without a compiler."""

    @pytest.fixture(autouse=True)
    def traced(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        torch._dynamo.reset()
        monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):  # torch's default, put back afterwards
            yield
        torch._dynamo.reset()

    def test_the_state_keeps_its_names_and_values(self) -> None:
        plain, words = trained(short("pgd_at")), ("train.compile=true",)
        trainer = short("pgd_at", *words)
        assert trainer.method.model._compiled_call_impl is not None
        compiled = trained(trainer)
        assert plain.keys() == compiled.keys()
        for key, value in plain.items():
            torch.testing.assert_close(compiled[key], value, rtol=1e-9, atol=1e-12)

    def test_a_hook_that_comes_later_is_called(self) -> None:
        model, x = short("pgd_at", "train.compile=true").method.model, torch.rand(2, 1, 8, 8)
        seen: list[int] = []
        model(x)
        hook = model.head.register_forward_pre_hook(lambda module, inputs: seen.append(1))
        model(x)
        hook.remove()
        model(x)
        assert seen == [1]

    @pytest.mark.parametrize("name", ["llr", "gal", "grad_align"])
    def test_second_order_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"train\.compile: True .*differentiates a gradient"):
            short(name, "train.compile=true")

    def test_the_default_compiles_nothing(self) -> None:
        assert short("pgd_at").method.model._compiled_call_impl is None
