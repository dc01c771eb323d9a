"""The answer to one question of an audit, and how far a share of n examples can be trusted to decide it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Check:
    """One question put to an evaluation: a `value`, above whose `threshold` a flag is raised.

    verdict: `pass`, `flag` or `not run`. sentence: what was measured, and what it means if that is a flag.
    """

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    sentence: str


def tolerance(share: float, n: int) -> float:
    """What `share` of n ≥ 1,000 examples becomes for fewer: share·√(1000/n), and never less than one example.

    A share measured on n examples has a standard error of √(p(1 − p)/n): the factor keeps the allowance the same
    number of standard errors that it is at 1,000. 0.5 points become 1.1 at n = 200, and 1.6 at n = 100.
    """
    return max(share * max(1.0, sqrt(1000 / n)), 1 / n)


def judge(name: str, value: float, threshold: float, found: str, meaning: str, also: bool = True) -> Check:
    """A flag, if the value is above its threshold and what `also` must hold does: its sentence goes on with what it
    means.
    """
    flag = value > threshold + 1e-9 and also  # shares of n are rounded: equal is not above
    return Check(name, value, threshold, "flag" if flag else "pass", f"{found}: {meaning}." if flag else f"{found}.")


def not_run(name: str, sentence: str) -> Check:
    return Check(name, None, None, "not run", sentence)


def points(share: float) -> str:
    return f"{100 * share:.1f} points"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
