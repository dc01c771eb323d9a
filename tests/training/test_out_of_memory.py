"""Training when memory runs out: smaller parts where the result is the same, else a line that says what makes room."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.errors import EnvironmentFault
from atbench.models.replay import Replay
from atbench.training import Trainer
from tests.support.contract import ALONE, Log, trainer_of
from tests.support.same_training import SmallDevice, assert_same_training, trained

pytestmark = pytest.mark.usefixtures("double")

#: The passes that still fit: of the search, before the loss, in the second batch.
LIMITED = [
    ("pgd_at", 0),
    ("pgd_at", 3),
    ("pgd_at", 6),
    ("trades", 4),
    ("fgsm_mep", 1),
    ("free_at", 0),
    ("fgsm_uap", 1),
    ("rst", 2),
]


@pytest.mark.parametrize(("name", "skip"), LIMITED)
def test_memory_that_runs_out_changes_the_size_of_parts_and_nothing_else(name: str, skip: int) -> None:
    log, whole = Log(), trained(name)
    trainer = trainer_of(name, ALONE, log)
    device = SmallDevice(trainer.method.model, rows=7, skip=skip)
    trainer.fit()
    assert device.refused >= 2 and trainer.micro_batches.count == 4
    assert log.said == ["out of memory: batches now go through in parts of 4 images, with the same result"]
    assert_same_training(whole, (trainer, log))


def test_what_an_attempt_has_accumulated_is_dropped() -> None:
    whole, log = trained("pgd_at"), Log()
    trainer = trainer_of("pgd_at", ALONE, log, "train.micro_batch=8")
    SmallDevice(trainer.method.model, rows=7, skip=7)  # two searches of three passes and a loss with its gradient
    trainer.fit()
    assert len(log.said) == 1
    assert_same_training(whole, (trainer, log))


def test_graphs_of_larger_parts_give_their_memory_back() -> None:
    trainer = trainer_of("pgd_at", ALONE, Log())
    trainer.method.attack.replay = replay = Replay()
    replay.graphs["of the whole batch"] = None  # type: ignore[assignment]
    replay.pool = (0, 1)
    SmallDevice(trainer.method.model, rows=8)
    trainer.train_batch()
    assert not replay.graphs and replay.pool is None


def refusal(trainer: Trainer) -> EnvironmentFault:
    """What ends the first step, which must leave weights and tables as they were."""
    before = {key: value.clone() for key, value in trainer.method.state_dict().items()}
    with pytest.raises(EnvironmentFault) as caught:
        trainer.fit()
    clock, after = trainer.method.clock, trainer.method.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert (clock.step, clock.round, clock.rank, clock.world) == (0, 0, 0, 1)
    assert caught.value.exit_code == 5 and len(str(caught.value).splitlines()) == 1
    return caught.value


def test_batchnorm_in_smaller_parts_is_left_to_the_user() -> None:
    log = Log()
    trainer = trainer_of("pgd_at", ALONE, log, "model.norm=batch")
    SmallDevice(trainer.method.model, rows=8)
    fault = refusal(trainer)
    assert "BatchNorm" in fault.why and not log.said and not log.saved
    for way in ("train.micro_batch=8", "train.batch_size", "train.precision.update=bf16"):
        assert way in fault.fix
    again = trainer_of("pgd_at", ALONE, Log(), "model.norm=batch", "train.micro_batch=8")
    SmallDevice(again.method.model, rows=8)
    again.fit()


def test_dropout_in_smaller_parts_is_left_to_the_user() -> None:
    log = Log()
    trainer = trainer_of("pgd_at", ALONE, log)
    trainer.method.model.register_forward_hook(lambda net, x, z: nn.functional.dropout(z, 0.5, net.training))
    SmallDevice(trainer.method.model, rows=8)
    fault = refusal(trainer)
    assert "dropout" in fault.why and "train.micro_batch=8" in fault.fix and not log.said


def test_weight_perturbation_is_not_begun_again() -> None:
    trainer = trainer_of("pgd_at", ALONE, Log(), "plus=awp")
    SmallDevice(trainer.method.model, rows=8)
    assert "awp" in refusal(trainer).why


def test_a_batch_that_cannot_be_split_is_not_begun_again() -> None:
    for name, why in (("grad_align", "needs all images"), ("pgd_at", "cannot be split")):
        trainer = trainer_of(name, ALONE, Log())
        SmallDevice(trainer.method.model, rows=0)
        fault = refusal(trainer)
        assert why in fault.why and "micro_batch" not in fault.fix and "train.batch_size" in fault.fix


def test_bf16_is_no_advice_where_it_is_on() -> None:
    words = ("model.norm=batch", "train.precision.attack=bf16", "train.precision.update=bf16")
    trainer = trainer_of("pgd_at", ALONE, Log(), *words)
    SmallDevice(trainer.method.model, rows=8)
    assert "bf16" not in refusal(trainer).fix


def test_an_update_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("pgd_at", ALONE, Log())
    group = trainer.groups[0]

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(group, "step", step)
    assert "an update of this batch has begun" in refusal(trainer).why

    trainer = trainer_of("free_at", ALONE, Log())
    SmallDevice(trainer.method.model, rows=8, skip=1)  # the second replay
    with pytest.raises(EnvironmentFault, match="an update of this batch has begun"):
        trainer.fit()


def test_other_failures_pass() -> None:
    trainer = trainer_of("pgd_at", ALONE, Log())

    def fail(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise RuntimeError("shapes")

    trainer.method.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.fit()
