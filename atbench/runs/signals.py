"""Handling of SIGINT and SIGTERM.

In training the handler only sets a flag: the run saves and ends at the next step, and a second Ctrl-C ends it at once.
An evaluation, a run's own too, writes its results as it goes, and ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from atbench.errors import Interrupted


class SignalFlag:
    """0, or the exit code of the signal that raised: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self) -> None:
        self.code = 0

    def __call__(self) -> int:
        return self.code


@contextmanager
def flag_signals() -> Iterator[SignalFlag]:
    """A block in which the signals set the flag that it yields; outside the main thread it stays 0."""
    flag = SignalFlag()

    def note(number: int, frame: FrameType | None) -> None:
        if flag.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.code = 128 + number

    with _handled(note):
        yield flag


@contextmanager
def interrupt_on_signals(command: str, folder: Path, before: int = 0) -> Iterator[None]:
    """A block that the signals end at once, by an Interrupted that says which command goes on with the work in
    `folder`. `before`: the code of a signal that raised earlier and only set a flag, which ends the block as it begins.
    """
    raised: list[Interrupted] = []

    def leave(number: int, frame: FrameType | None = None) -> None:
        why = f"stopped by {signal.Signals(number).name}"
        raised.append(Interrupted(128 + number, command.split()[1], folder, why, f"go on with `{command}`"))
        raise raised[-1]

    with _handled(leave):
        if before:
            leave(before - 128)
        yield
    if raised:  # whatever it interrupted took it for an error of its own
        raise raised[-1]


@contextmanager
def naming_command(command: str) -> Iterator[None]:
    """A block that says, where it is interrupted, which command goes on with the work."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(stop.exit_code, stop.key, stop.value, stop.why, f"go on with `{command}`") from stop
    except KeyboardInterrupt as stop:
        why = "a second Ctrl-C left no time to save"
        raise Interrupted(130, command.split()[1], "stopped", why, f"go on with `{command}`") from stop


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A block with this handler; outside the main thread nothing can be installed."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
