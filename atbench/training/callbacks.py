"""What the trainer tells and asks those who started it."""

from __future__ import annotations

from typing import Any, Protocol

from atbench.evaluation.activity import Activity


class Callbacks(Protocol):
    """Progress, metrics and checkpoints of a training run; all but `advance` and `validating` are called on the main
    process alone.
    """

    def advance(self, examples: int, attack_share: float) -> None: ...

    def validating(self, activity: Activity) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def watched(self, row: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def save(self, name: str, state: dict[str, Any]) -> None: ...


class Silent:
    """Callbacks that do nothing, for measurements, and for classes that hear one thing alone."""

    def advance(self, examples: int, attack_share: float) -> None: ...

    def validating(self, activity: Activity) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def watched(self, row: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def save(self, name: str, state: dict[str, Any]) -> None: ...


class Interrupt(Protocol):
    """0, or the exit code with which training should end at the next step (a signal came)."""

    def __call__(self) -> int: ...
