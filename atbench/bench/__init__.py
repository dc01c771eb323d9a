"""What `atbench bench` measures: this machine, our speed beside that of others, and the bars that it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of measurement: its module, whose `PARTS` are what `--only` names, and how often it measures.

    asked: parts that take long, and are measured where `--only` names them.
    """

    module: str
    parts: tuple[str, ...]
    rounds: int
    summary: str
    asked: tuple[str, ...] = ()

    def usual(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if part not in self.asked)


KINDS: Mapping[str, Kind] = {
    "train": Kind("atbench.bench.train", ("floor", "steps", "overhead"), 7, "training steps, beside other tools"),
    "eval": Kind(
        "atbench.bench.eval", ("sweep", "restarts", "autoattack"), 3, "attacks, beside other tools", ("autoattack",)
    ),
    "data": Kind("atbench.bench.data", ("resident", "folder"), 5, "images a second, beside torchvision and DataLoader"),
    "start": Kind("atbench.bench.start", ("commands", "checkpoint"), 3, "start-up of commands, and checkpoints"),
}
