"""Ctrl-C and SIGTERM: the handler only sets a flag; training saves and leaves at the next step. A second Ctrl-C leaves
at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Flag:
    """0, or the exit code of the signal that came: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self) -> None:
        self.code = 0

    def __call__(self) -> int:
        return self.code


@contextmanager
def watched() -> Iterator[Flag]:
    """A block in which the signals set the flag that it yields. Outside the main thread nothing can be installed: the
    flag stays 0.
    """
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, frame: FrameType | None) -> None:
        if flag.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.code = 128 + number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
