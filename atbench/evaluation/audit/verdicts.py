"""The answer to one question of an audit, and how far a share of n examples can be trusted to decide it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from atbench.interval import Z


@dataclass(frozen=True)
class Check:
    """One question put to an evaluation: a `value`, above whose `threshold` a flag is raised, unless the check knows an
    honest reason for it.

    verdict: `pass`, `flag` or `not run`. sentence: what was measured, and what it means if that is a flag.
    """

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    sentence: str


def tolerance(share: float, n: int) -> float:
    """What a share that is the limit for 1,000 examples and more becomes for n: the limit plus 1.96 times what the
    standard error √(p(1 − p)/n) of that share is above its own at 1,000, and never less than one example.

    0.5 points become 0.9 at n = 200 and 1.4 at n = 100; 5 points become 6.7 and 7.9.
    """
    wider = max(0.0, 1 / sqrt(n) - 1 / sqrt(1000))
    return max(share + Z * sqrt(share * (1 - share)) * wider, 1 / n)


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
