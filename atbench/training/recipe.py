"""Settings of a training that are not objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What `train` says of numbers and names; the trainer reads it."""

    epochs: int
    seed: int = 0
    precision: tuple[str, str] = ("fp32", "fp32")
    tf32: bool = False
    channels_last: bool = False
    clip_norm: float | None = None
    micro_batch: int | None = None
    select_steps: int = 10
    select_n: int = 1000
    select_every: int = 1
    select_both: bool = False
    save_minutes: float = 5.0
    save_steps: int | None = None
    save_every: int | None = None
    time_limit: float | None = None
