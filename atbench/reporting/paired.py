"""Paired test of two networks on the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from atbench.reporting.results import Array


@dataclass(frozen=True)
class Paired:
    """How many examples only the first network has right, and only the second, and the p-value of McNemar's test."""

    first_only: int
    second_only: int

    @property
    def p(self) -> float:
        """Exact and two-sided (McNemar 1947): of the examples that the two judge differently, as many fall to either
        side as heads and tails of a fair coin.
        """
        n, k = self.first_only + self.second_only, min(self.first_only, self.second_only)
        return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


def mcnemar(first: Array, second: Array) -> Paired:
    """The test on masks (n,) of right answers to the same examples."""
    return Paired(int((first & ~second).sum()), int((second & ~first).sum()))
