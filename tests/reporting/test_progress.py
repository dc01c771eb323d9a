"""What an evaluation and a validation say of themselves: on a terminal a bar, elsewhere lines without control codes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from atbench.evaluation.activity import Activity
from atbench.reporting import Progress, progress
from atbench.reporting.progress import EvalProgress


class Clock:
    """Stands for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_line_every_twenty_seconds(clock: Clock) -> None:
    """With the images done, those still robust of all that are attacked, and the time left at the pace so far."""
    console = Console(file=io.StringIO(), width=40)
    with EvalProgress("best", console) as shown:
        for second in range(50):
            clock.now = 100.0 + second
            shown(Activity("attack 2/5 apgd_t", 1000 + 10 * second, 2000, 3 * second))
        clock.now = 160.0
        shown(Activity("audit"))
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "best  attack 2/5 apgd_t, 1,200 of 2,000 images, 1,940 still robust, about 1 min 20 s left",
        "best  attack 2/5 apgd_t, 1,400 of 2,000 images, 1,880 still robust, about 1 min 00 s left",
        "best  audit",
    ]


def test_the_time_left_counts_what_this_process_has_done(clock: Clock) -> None:
    """An evaluation that goes on has images done for nothing."""
    console = Console(file=io.StringIO(), width=200)
    with EvalProgress("last", console) as shown:
        shown(Activity("square", 900, 1000, 0))
        clock.now += 30
        shown(Activity("square", 950, 1000, 0))
    assert console.file.getvalue() == "last  square, 950 of 1,000 images, 1,000 still robust, about 30.0 s left\n"  # type: ignore[attr-defined]


def test_a_long_validation_says_how_far_it_is(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=200)
    with Progress(100, 20, console=console) as shown:
        shown.validating(Activity("validation clean", 0, 500))
        clock.now += 21
        shown.validating(Activity("validation pgd-10", 128, 400))
        shown.validating(Activity("validation pgd-10", 256, 400))
    with Progress(100, 20, draw=False, console=console) as shown:
        clock.now += 21
        shown.validating(Activity("validation pgd-10", 256, 400))
        shown.say("unseen")
    assert console.file.getvalue() == "epoch 1/20  validation pgd-10, 128 of 400 images\n"  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_knows_what_has_no_number_of_images() -> None:
    """The audit, and what runs before the first measurement."""
    console = Console(file=Terminal(), force_terminal=True, width=100)
    with EvalProgress("best", console) as shown:
        assert shown._bar is not None
        shown._bar.refresh()
        for activity in (Activity("attack 1/2 square", 100, 400, 7), Activity("audit"), Activity("pgd", 1, 2)):
            shown(activity)
            shown._bar.refresh()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "attack 1/2 square, 393 still robust" in said and "100/400" in said and "best  audit" in said


def test_the_bar_of_a_training_shows_its_validation() -> None:
    console = Console(file=Terminal(), force_terminal=True, width=80)
    with Progress(100, 20, console=console, epoch=3) as shown:
        assert shown._bar is not None
        shown.advance(1, examples=32)
        shown.validating(Activity("validation pgd-10", 128, 400))
        shown._bar.refresh()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "epoch 4/20  validation 128/400" in said and "img/s" not in said, "one line of 80 columns"
