"""The contract table over the whole registry: what the trainer promises to every method that exists, by existing.

Two gloo processes equal one with the joint batch to 1e-12 and each other exactly; a resumed run is bit-equal to an
undisturbed one; adversarial weight perturbation on top commits once a round and keeps both promises.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from atbench.errors import ConfigError, Interrupted
from tests.support.contract import ACCUMULATE, ALONE, Log, TwoProcesses, outcome, trainer_of
from tests.support.tiers import METHODS

AWP = ("plus=awp",)
JOBS = [(name, plus) for name in METHODS for plus in ((), AWP) if not (plus and name in ACCUMULATE)]

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    """Two real processes for all methods, one after the other."""
    processes = TwoProcesses(tmp_path_factory.mktemp("two"))
    yield processes
    processes.close()


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel()), default=0.0)


@pytest.mark.parametrize(("name", "plus"), JOBS, ids=[f"{name}{'+awp' if plus else ''}" for name, plus in JOBS])
@pytest.mark.every_method("name")
@pytest.mark.every_pair("name", "plus")
def test_two_processes_equal_one(name: str, plus: tuple[str, ...], two: TwoProcesses) -> None:
    two.begin(name, plus)
    alone = outcome(name, ALONE, *plus)
    first, second = two.outcomes(name, plus)
    assert difference(first["state"], second["state"]) == 0.0, "the ranks differ"
    assert difference(alone["state"], first["state"]) <= 1e-12
    assert alone["loss"] == pytest.approx(first["loss"], abs=1e-10)
    assert alone["pgd"] == first["pgd"]
    assert alone["counts"][0] == alone["counts"][1] > 0, "one commit a round"
    start = trainer_of(name, ALONE, Log(), *plus).method.state_dict()
    assert difference(alone["state"], start) > 1e-6, "nothing was trained"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("after", [1, 5], ids=["first-epoch", "second-epoch"])
@pytest.mark.every_method("name")
@pytest.mark.every_pair("name", "after")
def test_resume_is_bit_equal(name: str, after: int) -> None:
    whole = Log()
    undisturbed = trainer_of(name, ALONE, whole)
    undisturbed.fit()

    broken = Log()
    with pytest.raises(Interrupted):
        trainer_of(name, ALONE, broken, stop_after=after).fit()
    state: dict[str, Any] = torch.load(io.BytesIO(broken.saved["last"]), weights_only=True)
    assert (state["epoch"], state["step"]) != (0, 0)
    resumed = trainer_of(name, ALONE, broken)
    resumed.load(state)
    resumed.fit()

    assert difference(undisturbed.state()["method"], resumed.state()["method"]) == 0.0
    ours, theirs = undisturbed.state()["optimizers"], resumed.state()["optimizers"]
    for group, saved in ours.items():
        for key, slot in saved["state"].items():
            for field, value in slot.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[group]["state"][key][field]))
    measured = [{key: row[key] for key in ("train", "val", "fit", "gap", "lr")} for row in whole.rows]
    again = [{key: row[key] for key in ("train", "val", "fit", "gap", "lr")} for row in broken.rows]
    assert measured == again


@pytest.mark.parametrize("name", sorted(ACCUMULATE))
def test_weight_perturbation_is_refused_where_rounds_accumulate(name: str) -> None:
    with pytest.raises(ConfigError, match="accumulates"):
        trainer_of(name, ALONE, Log(), *AWP)
