from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    name: str
    value: float | None
    threshold: float | None
    verdict: str
    sentence: str


def audit(victim: Any, images: Any, clean: Any, threat: Any, outcomes: Any, n: int) -> list[Check]:
    return []


def verdict(checks: list[Check]) -> dict[str, Any]:
    return {"trusted": True, "flags": [], "sentence": ""}
