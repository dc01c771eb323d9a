"""What an evaluation is doing, for those who show its progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Activity:
    """A measurement by name, its images done and in all, and how many of those done are broken, where it breaks any."""

    name: str
    done: int = 0
    total: int = 0
    broken: int | None = None
