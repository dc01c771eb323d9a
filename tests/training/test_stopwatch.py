"""Times of a device that works on while the host goes ahead, shown with events that stand for CUDA's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from atbench.training.stopwatch import Stopwatch, wait_for
from tests.support.contract import ALONE, Log, trainer_of


class Device:
    """A device with a clock of its own, in milliseconds: `asked` is when it will be through, `done` how far it is."""

    def __init__(self) -> None:
        self.asked = self.done = 0.0
        self.waits = 0

    def synchronize(self, _: object = None) -> None:
        self.waits, self.done = self.waits + 1, self.asked


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            self.at = device.asked

        def query(self) -> bool:
            return self.at <= device.done

        def elapsed_time(self, other: Event) -> float:
            assert self.query() and other.query(), "CUDA raises for events that are not over"
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    yield device


def lap(watch: Stopwatch, device: Device, milliseconds: float) -> None:
    started = watch.now()
    device.asked += milliseconds
    watch.laps.append((started, watch.now()))


def test_laps_are_the_devices_time_and_reading_them_does_not_wait(device: Device) -> None:
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        lap(watch, device, 2000)
        device.asked += 500  # of other work
    assert watch.seconds == 0 and device.waits == 0, "the host was through at once, the device is not"
    device.done = 4600  # in the second lap's shadow: it ended at 4500
    assert watch.seconds == pytest.approx(4) and device.waits == 0
    assert len(watch.laps) == 1, "what is over is not kept"
    wait_for(watch.device)
    assert watch.seconds == pytest.approx(6) and watch.seconds == pytest.approx(6) and device.waits == 1


def test_an_epochs_figures_are_of_what_the_device_did(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read once the device is through: of 10 s an epoch the attack takes 7.5."""
    trainer = trainer_of("pgd_at", ALONE, log := Log(), "train.epochs=1")
    watch = trainer.train_step.attack_time = Stopwatch(torch.device("cuda"))
    monkeypatch.setattr("atbench.training.trainer.time.monotonic", lambda: device.done / 1000)
    steps, shares = trainer.data.steps, list[float]()

    def train_batch() -> None:
        lap(watch, device, 7500 / steps)
        device.asked += 2500 / steps
        device.done += 1  # the host takes a millisecond

    def advance(examples: int, attack_share: float) -> None:
        shares.append(attack_share)
        assert device.waits == 0

    monkeypatch.setattr(trainer, "train_batch", train_batch)
    monkeypatch.setattr(log, "advance", advance)
    trainer.fit()
    (row,) = log.rows
    assert row["seconds"] == pytest.approx(10) and row["attack_share"] == pytest.approx(0.75)
    assert row["examples_per_second"] == pytest.approx(steps * 16 / 10, abs=0.1)
    assert device.waits == 1 and len(shares) == steps


def test_on_a_cpu_the_attacks_time_is_that_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("pgd_at", ALONE, Log())
    trainer.train_batch()
    watch = trainer.train_step.attack_time
    first = watch.seconds
    assert first > 0 and not watch.laps
    trainer.train_batch()
    assert watch.seconds > first
