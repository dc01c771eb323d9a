"""Number types with a range, as annotations of arguments: `decay: BelowOne`.

A value outside is refused before anything is built (`annotations.py`); a type checker sees plain floats and integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The finite numbers for which `contains` is true, and a `description` of them for messages."""

    contains: Callable[[float], bool]
    description: str

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return math.isfinite(value) and self.contains(value)


ABOVE_ZERO = Range(lambda value: value > 0, "a number above 0")
NOT_NEGATIVE = Range(lambda value: value >= 0, "a number from 0")
SHARE = Range(lambda value: 0 <= value <= 1, "a share from 0 to 1")
SOME_SHARE = Range(lambda value: 0 < value <= 1, "a share above 0, at most 1")
BELOW_ONE = Range(lambda value: 0 <= value < 1, "a number from 0 to below 1")
COUNT = Range(lambda value: value >= 1 and value == int(value), "a whole number from 1")
ANY_COUNT = Range(lambda value: value >= 0 and value == int(value), "a whole number from 0")
SEVERITY = Range(lambda value: value in range(1, 6), "a severity from 1 to 5")

Positive = Annotated[float, ABOVE_ZERO]
NotNegative = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, SHARE]
SomeShare = Annotated[float, SOME_SHARE]
BelowOne = Annotated[float, BELOW_ONE]
Count = Annotated[int, COUNT]
AnyCount = Annotated[int, ANY_COUNT]
