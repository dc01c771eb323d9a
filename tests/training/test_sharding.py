"""`train.shard`: a network that two processes share out is trained as one that both have, or is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.cli.main import main
from atbench.config import validate
from atbench.errors import ConfigError
from atbench.models import Network
from atbench.training import World
from atbench.training.sharding import optimizer_parts, parts_like, refuse
from tests.support.configs import resolved
from tests.support.contract import ALONE, Log, TwoProcesses, trainer_of
from tests.support.sharded import SHARD, both, resumed
from tests.support.tiers import METHODS

PAIR = World(torch.device("cpu"), rank=0, size=2)
RESUMED = ("train.batch_size=4", "train.optimizer.momentum=0.9", "attack.steps=1", "train.selection.steps=1")

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    processes = TwoProcesses(tmp_path_factory.mktemp("shared"), both)
    yield processes
    processes.close()


def check(name: str, two: TwoProcesses, *overrides: str) -> list[dict[str, Any]]:
    """Hold a shared training to the replicated one. Returns what both processes held of it."""
    two.begin(name, overrides)
    ranks = two.outcomes(name, overrides)
    sharded, replicated = ranks[0]["sharded"], ranks[0]["replicated"]
    assert distance(sharded["state"], replicated["state"]) <= 1e-12
    assert distance(replicated["state"], trainer_of(name, ALONE, Log(), *overrides).method.state_dict()) > 1e-6
    for ours, theirs in zip(sharded["rows"], replicated["rows"], strict=True):
        assert ours["train"] == pytest.approx(theirs["train"], abs=1e-10)
        assert (ours["val"], ours["fit"]) == (theirs["val"], theirs["fit"])
    assert sharded["counts"] == replicated["counts"] and replicated["fused"]
    assert sharded["saved"] == replicated["saved"] and ranks[1]["sharded"]["saved"] == []
    return [rank["sharded"] for rank in ranks]


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel()), default=0.0)


def refused(name: str) -> bool:
    try:
        refuse(trainer_of(name, ALONE, Log()).method, PAIR)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_every_method_is_trained_as_if_replicated_or_refused(name: str, two: TwoProcesses) -> None:
    if not refused(name):
        check(name, two)


@pytest.mark.parametrize("name", ["pgd_at", "trades"])
def test_each_process_holds_a_part(name: str, two: TwoProcesses) -> None:
    ranks = check(name, two)
    held = [each["held"] for each in ranks]
    assert not any(each["fused"] for each in ranks), "torch has no fused SGD of parts"
    sizes = [weight.numel() for weight in trainer_of(name, ALONE, Log()).method.model.parameters()]
    for before, after, momenta in held:
        assert before == after == momenta, "in and after training"
        assert 0 < sum(before) < 0.6 * sum(sizes)
    assert [a + b for a, b in zip(held[0][0], held[1][0], strict=True)] == sizes


def test_searches_of_different_lengths_do_not_wait_for_each_other(two: TwoProcesses) -> None:
    assert not refused("kim_interval")
    check("kim_interval", two)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("trades", ("plus=[awp,ema]", "train.clip_norm=0.05", "train.weight_decay_on=weights")),
        ("pgd_at", ("plus=swa", "model.norm=batch", "train.selection.networks=both")),
        ("pgd_at", ("recipe=adam", "train.channels_last=true", "seed=1", "plus=fawa")),
        ("fgsm_at", ("guard.collapse=rollback", "guard.every=3", "guard.n=8", "guard.steps=2")),
        ("mart", ("train.micro_batch=4", "train.clip_norm=0.05")),
        ("adp", ()),
        ("yopo", ()),
    ],
)
def test_with_what_a_training_may_have(name: str, overrides: tuple[str, ...], two: TwoProcesses) -> None:
    check(name, two, *overrides)


def test_a_checkpoint_is_that_of_any_other_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    two = TwoProcesses(tmp_path_factory.mktemp("resumed"), resumed)
    words = (*RESUMED, "plus=ema")
    two.begin("trades", words)
    ours, _ = two.outcomes("trades", words)
    two.close()
    alone = trainer_of("trades", ALONE, Log(), *words)
    alone.train_batch()
    last, layout = ours["last"], alone.state()
    assert (last["epoch"], last["step"]) == (1, 10)
    assert last["method"].keys() == layout["method"].keys() and last["model"].keys() == layout["model"].keys()
    assert all(
        type(value) is Tensor and value.shape == layout["method"][key].shape for key, value in last["method"].items()
    )
    group, same = last["optimizers"]["model"], layout["optimizers"]["model"]
    assert group["param_groups"][0]["params"] == same["param_groups"][0]["params"]
    assert {k: v["momentum_buffer"].shape for k, v in group["state"].items()} == {
        k: v["momentum_buffer"].shape for k, v in same["state"].items()
    }
    alone.load(last)  # on one process that holds all of it
    assert distance(alone.method.state_dict(), last["method"]) == 0
    assert distance(alone.averages[0].values, last["averages"][0]["values"]) == 0

    undisturbed, again, replicated = (ours[key] for key in ("undisturbed", "resumed", "replicated"))
    for part in ("method", "model"):
        assert distance(undisturbed[part], again[part]) == 0, "to the bit"
        assert distance(undisturbed[part], replicated[part]) <= 1e-12
    momenta = [
        {str(key): slot["momentum_buffer"] for key, slot in each["optimizers"]["model"]["state"].items()}
        for each in (undisturbed, again)
    ]
    assert distance(*momenta) == 0
    assert distance(undisturbed["method"], last["method"]) > 1e-6

    kept, later, *restored = ours["kept"]
    for state in restored:
        assert distance(state["method"], kept["method"]) == 0 < distance(later["method"], kept["method"])
        for index, slot in kept["optimizers"]["model"]["state"].items():
            assert torch.equal(slot["momentum_buffer"], state["optimizers"]["model"]["state"][index]["momentum_buffer"])


def test_what_is_no_part_stays_as_it_is() -> None:
    weight = nn.Parameter(torch.rand(3, 2))
    assert parts_like({"a": weight}, {"a": weight})["a"] is weight
    momentum, step = torch.rand(3, 2), torch.tensor(1.0)
    state = {"state": {0: {"exp_avg": momentum, "step": step}}, "param_groups": [{"lr": 1.0}]}
    assert optimizer_parts(state, [weight]) == state


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("ard", (), "Ard has networks besides the model"),
        ("seat", (), "Seat has networks besides the model"),
        ("adv_pretrain", (), "begins with networks of other trainings"),
        ("llr", (), "differentiates a gradient"),
        ("l1_penalty_at", (), "reads weights outside of forward passes"),
        ("he", (), "writes weights in its forward pass"),
    ],
)
def test_what_cannot_be_shared_is_refused(name: str, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.shard: True — .*{said}"):
        refuse(trainer_of(name, ALONE, Log(), *overrides).method, PAIR)


class Odd(Network):
    def __init__(self, shape: tuple[int, ...], outside: bool) -> None:
        super().__init__(nn.Sequential(nn.Flatten()), nn.Linear(64, 10), (0.5,), (0.5,))
        scale = nn.Parameter(torch.tensor(1.0))
        (self if outside else self.head).register_parameter("scale", scale)


@pytest.mark.parametrize(
    ("outside", "said"), [(True, "outside of its stages and head"), (False, "weight that is a single number")]
)
def test_networks_of_other_forms_are_refused(outside: bool, said: str) -> None:
    method = trainer_of("pgd_at", ALONE, Log()).method
    method.model = Odd((1, 8, 8), outside)
    with pytest.raises(ConfigError, match=said):
        refuse(method, PAIR)


def test_a_single_process_has_nothing_to_share(here: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "method=pgd_at", "model.width=2", "logger=none", "device=cpu", SHARD]) == 2
    assert "train.shard: True — needs several processes; start with torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["train.capture", "train.compile"])
def test_recorded_and_compiled_networks_are_not_shared(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: True — is not for a network that is shared out"):
        validate.validate_config(resolved("method=pgd_at", SHARD, f"{key}=true"))
