"""When last.pt is written, what a run that was killed between two of them ends with, and what its files hold."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.cli.main import main
from atbench.errors import Interrupted
from atbench.training import World, checkpoint, save_times
from atbench.training.save_times import SaveTimes
from atbench.training.trainer import Trainer
from tests.support.contract import ALONE, Log, trainer_of
from tests.support.runs import QUICK, contents, enter, final, only, rows, same_weights

STEPS = 4  # an epoch of the contract's trainer
LONG = ("train.epochs=4", "train.checkpoint.minutes=1000")


class Saves(Log):
    """A log with the position of each last.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, int]] = []

    def save(self, name: str, state: dict[str, Any]) -> None:
        super().save(name, state)
        if name == "last":
            self.places.append((state["epoch"], state["step"]))

    def last(self) -> dict[str, Any]:
        return content(self.saved["last"])


def content(data: bytes) -> dict[str, Any]:
    opened: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return opened


def size(state: Any) -> int:
    """Bytes of the tensors in a state, those of the network twice where it names them twice."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(size(each) for each in inner)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small tables of a test count as large, the statistics of its networks' layers do not."""
    monkeypatch.setattr(save_times, "LARGE", 10_000)


EACH, ENDS = [(1, 0), (2, 0), (3, 0), (4, 0)], [(1, 0), (4, 0)]


@pytest.mark.parametrize(
    ("method", "words", "places"),
    [
        ("trades", (), EACH),
        ("trades", ("model.norm=batch",), EACH),
        ("iaat", (), EACH),  # a number for each example
        *((method, (), ENDS) for method in ("fgsm_mep", "fgsm_mep_cs", "fgsm_pco", "atas")),
        ("fgsm_mep", ("train.checkpoint.steps=4",), EACH),
        ("fgsm_mep", ("train.checkpoint.steps=6",), [(1, 0), (1, 2), (3, 0), (4, 0)]),
    ],
)
@pytest.mark.usefixtures("large")
def test_large_tables_are_not_written_after_every_epoch(
    method: str, words: tuple[str, ...], places: list[tuple[int, int]]
) -> None:
    log = Saves()
    trainer_of(method, ALONE, log, *LONG, *words).fit()
    assert log.places == places


def test_of_cifar10_those_of_images_are_large_and_no_others() -> None:
    images, example = 50_000 * 3 * 32 * 32 * 4, 50_000 * 4
    assert 100 * example < save_times.LARGE < images / 5


@pytest.mark.usefixtures("large")
def test_minutes_count_from_the_last_time_also_over_the_end_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Saves()
    trainer = trainer_of("fgsm_mep", ALONE, log, "train.epochs=5", "train.checkpoint.minutes=6")
    trained = trainer.train_batch

    def a_minute_later() -> None:
        trained()
        now[0] += 60.0

    monkeypatch.setattr(trainer, "train_batch", a_minute_later)
    trainer.fit()
    # Over six minutes after the first epoch's end, which is step 4, is step 11; seven more and it is step 18.
    assert log.places == [(1, 0), (2, 3), (4, 2), (5, 0)]


class Other(World):
    """One of two processes; the clock of the other one is ahead."""

    def agree(self, flag: int) -> int:
        return 1


def test_processes_save_together_where_one_of_their_clocks_is_ahead() -> None:
    trainer = trainer_of("trades", ALONE, Log(), *LONG)
    clock = trainer.method.clock
    times = SaveTimes(trainer.method, trainer.recipe, Other(ALONE.device, rank=1, size=2))
    for clock.step in range(21):
        assert times.between_steps() == (clock.step in (0, 10, 20))


@pytest.mark.usefixtures("large")
def test_asked_to_leave_at_the_end_of_an_epoch_it_saves() -> None:
    log = Saves()
    with pytest.raises(Interrupted):
        trainer_of("fgsm_mep", ALONE, log, *LONG, stop_after=2 * STEPS).fit()
    assert log.places == [(1, 0), (2, 0)]
    again = Saves()
    with pytest.raises(Interrupted):
        trainer_of("trades", ALONE, again, *LONG, stop_after=2 * STEPS).fit()
    assert again.places == [(1, 0), (2, 0)], "once, and not again for leaving"


@pytest.mark.parametrize("method", ["fgsm_mep", "atas"])
@pytest.mark.usefixtures("large")
def test_killed_between_two_times_it_ends_as_if_undisturbed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = Saves(), Saves()
    undisturbed = trainer_of(method, ALONE, whole, *LONG)
    undisturbed.fit()
    dying = trainer_of(method, ALONE, broken, *LONG)
    trained = dying.train_batch

    def killed_in_epoch_4() -> None:
        trained()
        if (dying.method.clock.epoch, dying.method.clock.step) == (3, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(dying, "train_batch", killed_in_epoch_4)
    with pytest.raises(KeyboardInterrupt):
        dying.fit()
    assert broken.places == [(1, 0)], "epochs 2 and 3 are trained again"
    resumed = trainer_of(method, ALONE, broken, *LONG)
    resumed.load(broken.last())
    resumed.fit()
    ours, theirs = (each.last() for each in (whole, broken))
    for part in ("method", "model"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items())
    assert "delta" in ours["method"] and ours["best"] == theirs["best"] and whole.saved["best"] == broken.saved["best"]
    measured = [[(row["epoch"], row["train"], row["val"]) for row in log.rows] for log in (whole, broken)]
    assert measured[1][3:] == measured[0][1:]


def test_what_is_only_evaluated_holds_the_network_alone() -> None:
    log = Saves()
    trainer = trainer_of("fgsm_mep", ALONE, log, "train.checkpoint.every=1")
    trainer.fit()
    network = size(trainer.method.model.state_dict())
    tables = trainer.method.delta.nbytes + trainer.method.memory.nbytes
    for name in ("best", "epoch_1", "epoch_2"):
        assert size(content(log.saved[name])) == network
    assert size(log.last()["optimizers"]) > 0 and len(log.saved["last"]) > network + tables > len(log.saved["best"])


@pytest.mark.usefixtures("large")
def test_a_run_killed_between_two_times_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of metrics and best.pt are of later epochs than last.pt."""
    words = ("train", *(word for word in QUICK if not word.startswith("attack.")), "train.epochs=4", "method=fgsm_mep")
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    enter(tmp_path / "whole", monkeypatch)
    assert main([*words]) == 0
    enter(tmp_path / "broken", monkeypatch)
    end_of_epoch = Trainer._end_of_epoch

    def killed(trainer: Trainer, *given: Any) -> dict[str, Any]:
        if trainer.method.clock.epoch == 3:
            raise KeyboardInterrupt
        return end_of_epoch(trainer, *given)

    with monkeypatch.context() as dying:
        dying.setattr(Trainer, "_end_of_epoch", killed)
        assert main([*words]) == 130
    run, undisturbed = only(tmp_path / "broken"), only(tmp_path / "whole")
    assert final(run)["epoch"] == 1 and len(rows(run)) >= 3
    assert "checkpoints/last.prev.pt" not in contents(run)
    assert main(["train", f"resume={run}"]) == 0
    assert same_weights(run, undisturbed) and rows(run) == rows(undisturbed)
    best = [checkpoint.read(each / "checkpoints" / "best.pt") for each in (run, undisturbed)]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert all(torch.equal(value, best[1]["model"][name]) for name, value in best[0]["model"].items())
