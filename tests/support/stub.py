"""A program whose runs are recorded instead of run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stub:
    """Stands in for `atbench.workflows.train`: keeps what it was given, and does what `act` says."""

    act: Callable[[Any], float] = lambda cfg: 0.0
    configs: list[Any] = field(default_factory=list)
    typed: list[list[str]] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)

    def record(self, verb: str, cfg: Any) -> float:
        from atbench.config.argv import as_typed

        self.verbs.append(verb)
        self.configs.append(cfg)
        self.typed.append(as_typed())
        return self.act(cfg)
