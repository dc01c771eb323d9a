"""Result of one audit check, the verdict of all, and thresholds for shares of n examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from atbench.interval import Z


@dataclass(frozen=True)
class Check:
    """One audit check: flagged if `value` is above `threshold` and the check knows no honest reason for it.

    verdict: `pass`, `flag` or `not run`. sentence: what was measured and, of a flag, what it means.
    """

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    sentence: str


def allowed_share(share: float, n: int) -> float:
    """Threshold for a share of n examples, `share` from n = 1,000 on.

    Below, 1.96 times the excess of the standard error √(p(1 − p)/n) over its value at 1,000 is added, and the threshold
    is never less than one example: 0.5 points become 0.9 at n = 200 and 1.4 at n = 100; 5 points become 6.7 and 7.9.
    """
    wider = max(0.0, 1 / sqrt(n) - 1 / sqrt(1000))
    return max(share + Z * sqrt(share * (1 - share)) * wider, 1 / n)


def threshold_check(name: str, value: float, threshold: float, measured: str, meaning: str, also: bool = True) -> Check:
    """A check that flags if the value is above its threshold and `also` holds; a flag's sentence adds its meaning."""
    if value > threshold + 1e-9 and also:  # shares of n are rounded: equal is not above
        return Check(name, value, threshold, "flag", f"{measured}: {meaning}.")
    return Check(name, value, threshold, "pass", f"{measured}.")


def not_run(name: str, sentence: str) -> Check:
    return Check(name, None, None, "not run", sentence)


def as_points(share: float) -> str:
    return f"{100 * share:.1f} points"


def as_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def audit_verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """The verdict: `trusted` (some check was run and none flagged), `flags` (names), `sentence` (both, and checks that
    were not run).
    """
    flags = [check.name for check in checks if check.verdict == "flag"]
    skipped = [check.name for check in checks if check.verdict == "not run"]
    run = len(checks) - len(skipped)
    sentence = f"{len(flags)} of {run} audit checks flagged{': ' if flags else ''}{', '.join(flags)}."
    sentence = sentence if run else "No audit check was run."
    sentence += f" Not run: {', '.join(skipped)}." if skipped else ""
    return {"trusted": run > 0 and not flags, "flags": flags, "sentence": sentence}
