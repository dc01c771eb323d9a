"""Wall-clock time of work on a device: by the clock on a CPU, by events on CUDA, where calls return before the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch


class Stopwatch:
    """Sum of laps inside a step, without a wait. A lap is two calls of `now()`: moments that the device passes, in the
    order of its work.

        started = watch.now(); ...; watch.laps.append((started, watch.now()))

    A method for each of these would be a function more in every step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.now: Callable[[], Any] = partial(recorded_event, device) if device.type == "cuda" else perf_counter
        self.laps: deque[tuple[Any, Any]] = deque()  # that are not in the sum yet
        self.total = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the laps that the device is through with. Does not wait for the others."""
        while self.laps and (self.device.type != "cuda" or self.laps[0][1].query()):
            started, ended = self.laps.popleft()
            self.total += started.elapsed_time(ended) / 1000 if self.device.type == "cuda" else ended - started
        return self.total


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one piece of work, from when the device has nothing else to do until it is through with it."""
    watch = Stopwatch(device)
    wait_for(device)
    started = watch.now()
    work()
    watch.laps.append((started, watch.now()))
    wait_for(device)
    return watch.seconds


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for: what a clock says then is true, and so are laps."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recorded_event(device: torch.device) -> torch.cuda.Event:
    """An event at the end of what the device has been asked for until now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
