"""CPU seconds or device time of whole calls, to which other work on the machine does not add; tools in turns."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

import torch

from atbench.training.stopwatch import seconds_of, wait_for

Work = Callable[[], object]


def cpu_seconds(work: Work) -> float:
    """CPU seconds of a piece of work, in this process and in those that it started and that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = [resource.getrusage(each) for each in whose]
    work()
    after = [resource.getrusage(each) for each in whose]
    return sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in zip(after, before, strict=True))


class Clock:
    """Seconds and memory of a whole call: CPU seconds of all threads, or on CUDA those between events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, work: Work) -> float:
        return seconds_of(work, self.device) if self.device.type == "cuda" else cpu_seconds(work)

    def peak_bytes(self, work: Work) -> int | None:
        """The most memory that torch had in use on the device; None on a CPU, where torch keeps no count."""
        if self.device.type != "cuda":
            return None
        wait_for(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        wait_for(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))


def take_turns(
    tools: Mapping[str, Work], rounds: int, clock: Callable[[Work], float], warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every tool in every round. The order rotates from round to round; each has `warmup` turns before."""
    names = list(tools)
    for name in names * warmup:
        tools[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(tools[name]))
    return seconds
