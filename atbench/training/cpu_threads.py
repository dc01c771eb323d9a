"""CPU threads of a run: the number that was asked for, or by rule from the machine's load and the network's work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atbench.training.cost import Count

AUTO = "auto"
#: Operations in a forward pass of a batch that are worth a thread: with less, threads wait for each other longer than
#: they compute. On two cores the network for digits (77e6 in a batch of 32) takes 0.8 of the time with a second thread.
WORK = 30e6
STAT = Path("/proc/stat")


@contextmanager
def threads(count: int | str | None) -> Iterator[None]:
    """Context with `count` CPU threads; `auto` (or None, of earlier versions) as many as there are idle cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(idle_cores(before) if count is None or count == AUTO else int(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def idle_cores(most: int) -> int:
    """Cores that nothing else uses now, from 1 to `most`. Two threads on one core wait for each other all the time."""
    free = (os.cpu_count() or 1) - _busy_cores()
    return max(1, min(most, round(free)))


def settle(
    asked: int | str | None,
    network: nn.Module,
    shape: tuple[int, ...],
    batch_size: int,
    environment: Mapping[str, Any],
) -> None:
    """With `auto`, within `threads`: no more threads than a batch of this network keeps busy. A run that goes on has as
    many as its `environment` (the content of environment.json) says, for sums of floats depend on them.
    """
    if asked is not None and asked != AUTO:
        return
    before = environment.get("threads")
    wanted = before or min(torch.get_num_threads(), worth(network, shape, batch_size))
    torch.set_num_threads(min(int(wanted), os.cpu_count() or 1))


def worth(network: nn.Module, shape: tuple[int, ...], batch_size: int) -> int:
    """How many threads a forward pass of `batch_size` images of `shape` keeps busy, at least 1."""
    before, device = network.training, next(network.parameters()).device
    with Count() as count, torch.no_grad():
        network.eval()(torch.zeros(1, *shape, dtype=next(network.parameters()).dtype, device=device))
    network.train(before)
    return max(1, round(count.total * batch_size / WORK))


def _busy_cores(seconds: float = 0.1) -> float:
    """Cores in use just now; where the system does not say, its load of the last minute, or 0."""
    if not STAT.exists():
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy, total = _ticks()
    time.sleep(seconds)
    busy_later, total_later = _ticks()
    return (os.cpu_count() or 1) * (busy_later - busy) / max(total_later - total, 1)


def _ticks() -> tuple[int, int]:
    """Clock ticks of all cores together since the system's start: at work, and in all."""
    user, nice, system, idle, wait, *rest = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(rest), user + nice + system + idle + wait + sum(rest)
