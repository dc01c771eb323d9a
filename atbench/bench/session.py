"""Where and how long a kind measures, what it notes, and its rows with their bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from atbench.bench.clock import Clock, Work, take_turns
from atbench.bench.peers import INSTALL, installed
from atbench.bench.results import Bar, Row, bar_of, ratios


@dataclass
class Session:
    """One measurement: device, rounds, the bars of its kind, and lines to be printed below the table.

    methods: training methods that `--methods` names.
    tiny: sizes with which the measurement is tried out, and which show nothing.
    """

    device: torch.device
    rounds: int
    bars: Mapping[str, Bar]
    methods: tuple[str, ...] = ()
    tiny: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(self.device)

    def row(self, name: str, what: str, values: Sequence[float], unit: str = "×") -> Row:
        return Row(name, what, unit, tuple(values), bar_of(self.bars, name))

    def present(self, *peers: str) -> list[str]:
        """Those of the tools that are installed; the others are noted, once."""
        for peer in peers:
            note = f"{peer} is not installed: {INSTALL[peer]}"
            if not installed(peer) and note not in self.notes:
                self.notes.append(note)
        return [peer for peer in peers if installed(peer)]

    def seconds(self, tools: Mapping[str, Work], warmup: int | None = None) -> dict[str, list[float]]:
        """Seconds of the tools, which take turns. The first turns on CUDA choose kernels and capture graphs."""
        usual = 4 if self.device.type == "cuda" else 1
        return take_turns(tools, self.rounds, self.clock.seconds, usual if warmup is None else warmup)

    def beside(self, name: str, what: str, seconds: Mapping[str, Sequence[float]], ours: str) -> list[Row]:
        """How many times as long as we the others take, a row for each."""
        return [
            self.row(f"{name}/{peer}", f"{what}: {peer}", ratios(times, seconds[ours]))
            for peer, times in seconds.items()
            if not peer.startswith("atbench")
        ]
