"""No method computes more than its declared least: floating-point operations of one batch, counted, without a clock.

F is one forward pass. A backward pass to the input costs F, one to the weights another F (but for the first layer,
whose input
needs no gradient in an update: counts lie a little below the floor).
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from atbench.bench.steps import operations
from atbench.data import Batch
from atbench.data.digits import digits
from atbench.methods import Method
from atbench.training import World
from atbench.training.cost import Count
from atbench.workflows import factory
from atbench.workflows.forecast import least_passes
from tests.support.contract import begin_untrained, configuration
from tests.support.tiers import METHODS
from tests.support.ties import Watched

STEPS = 10
SIZE = 32
#: Floors known beforehand, k = 10: PGD-AT 2k + 3, TRADES 2k + 7, FGSM-MEP 7, LLR 2k + 9.
KNOWN = {"pgd_at": 23.0, "trades": 27.0, "mart": 26.0, "fgsm_mep": 7.0, "standard": 3.0, "free_at": 24.0, "llr": 29.0}
#: Whose examples leave the attack one by one, of which one alone is attacked further, or that attack another network.
VARIES = {"yopo", "mma", "cat_curriculum", "dverge", "adt_exp_am", "eat", "fat", "gair_fat", "fat_trades", "fat_mart"}
VARIES |= {"adt_imp_am", "dynamic_at", "kim_interval", "sat_r1", "szegedy"}


def method_of(name: str) -> tuple[Method, Batch, int]:
    """A method on a network without normalisation, and the cost of one forward pass of a batch."""
    here = World(torch.device("cpu"))
    cfg = configuration(name, "model.width=16", f"attack.steps={STEPS}", f"train.batch_size={SIZE}")
    source = digits()
    data = factory.make_data(cfg, source, here)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, here)
    begin_untrained(method, cfg, source)
    method.clock.epoch, method.clock.epochs = 1, 2  # past every warm-up
    method.clock.step = 1  # past what an epoch begins with
    with Count() as count, torch.no_grad():
        method.model(torch.rand(SIZE, *source.shape))
    return method, data.batch(1, 0), count.total


@dataclass
class Used:
    """What one batch of a method came to."""

    name: str
    floor: float | None
    least: float  # that a forecast reckons with
    passes: float  # operations, in forward passes
    ties: set[str]


@pytest.fixture(scope="module", params=METHODS)
def used(request: pytest.FixtureRequest) -> Used:
    method, batch, forward = method_of(request.param)
    with Watched() as watched:
        total = operations(method, batch)
    return Used(request.param, method.forward_cost(STEPS), least_passes(method), total / forward, watched.found)


@pytest.mark.every_method("used")
def test_cost_is_at_the_floor(used: Used) -> None:
    assert used.floor == KNOWN.get(used.name, used.floor), "the declared floor is not the known one"
    if used.floor is None:
        assert used.name in VARIES, "a fixed cost must be declared"
        return
    assert 0.9 * used.floor <= used.passes <= 1.02 * used.floor


@pytest.mark.every_method("used")
def test_no_forecast_reckons_with_more_passes_than_there_are(used: Used) -> None:
    """It divides the time of a step by them, and says of what it multiplies the result by: at most."""
    assert used.passes >= 0.9 * used.least


@pytest.mark.every_method("used")
def test_no_gradient_depends_on_the_version_of_torch(used: Used) -> None:
    assert not used.ties
