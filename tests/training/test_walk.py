"""A walk of one training step: which functions of atbench one step of TRADES enters, and in which order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch

import atbench
from atbench.training import World
from tests.support.contract import Log, trainer_of

PACKAGE = Path(atbench.__file__).parent
#: Parts from top to bottom: a function calls its own part, and parts below it.
PARTS = ("training", "methods", "attacks", "models", "data", "runs")
#: One step, in the order in which functions are first entered.
WALK = [
    "training.train_step.TrainStep.__call__",
    "methods.trades.Trades.perturb",
    "models.batchnorm.attack_mode",
    "methods.base.Method.rng",
    "runs.seeding.derive_seed",
    "attacks.ascent.gradient_ascent.GradientAttack.__call__",
    "attacks.ascent.gradient_ascent.GradientAttack.begin",
    "runs.seeding.Draws.normal",
    "attacks.ascent.loop.Ascent.run",
    "attacks.norms.lp_ball.Linf.projector",
    "attacks.losses.Objective.__call__",
    "attacks.losses.kl_from",
    "attacks.norms.lp_ball.Linf.ascend",
    "methods.trades.Trades.loss",
    "methods.divergences.kl_divergence",
    "methods.base.Method.after_update",
]


class Walk:
    """Functions of atbench in the order of their first entry, and which of them entered which.

    Not counted: the network's forward; comprehensions, which later versions of Python run inline.
    """

    def __init__(self) -> None:
        self.functions: list[str] = []
        self.calls: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (name := self.name(frame)) is None:
            return
        if name not in self.functions:
            self.functions.append(name)
        above = frame.f_back
        while above is not None and (caller := self.name(above)) is None:
            above = above.f_back
        if above is not None and caller is not None:
            self.calls.add((caller, name))

    @staticmethod
    def name(frame: FrameType) -> str | None:
        """The function of a frame; None if it is not one that counts."""
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PACKAGE):
            return None
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        function = frame.f_code.co_qualname
        network = module.startswith("models.") and module != "models.batchnorm"
        return None if network or function.endswith(("comp>", "<genexpr>")) else f"{module}.{function}"


@contextmanager
def profiled(walk: Walk) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def walk() -> Walk:
    trainer = trainer_of("trades", World(torch.device("cpu")), Log(), "model.norm=batch", "attack.steps=3")
    trainer.method.train()
    (round,) = trainer.method.inner_updates(trainer.data.batch(0, 0))
    walk = Walk()
    with profiled(walk):
        trainer.train_step(round)
    return walk


def test_one_step_enters_sixteen_functions(walk: Walk) -> None:
    assert walk.functions == WALK and len(WALK) == 16


def test_a_step_never_calls_up(walk: Walk) -> None:
    """No part calls one above it: training, methods, attacks, and what they all use."""
    levels = {part: level for level, part in enumerate(PARTS)}
    for caller, callee in walk.calls:
        above, below = caller.partition(".")[0], callee.partition(".")[0]
        assert levels[above] <= levels[below], f"{caller} calls {callee}"
    assert any(caller.startswith("training.") and callee.startswith("methods.") for caller, callee in walk.calls)
    assert any(caller.startswith("methods.") and callee.startswith("attacks.") for caller, callee in walk.calls)
