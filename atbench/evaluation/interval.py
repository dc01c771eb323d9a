"""95 % intervals of accuracies (Wilson)."""

from __future__ import annotations

from math import sqrt

Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927): unlike p ± 1.96·σ it stays inside [0, 1] and is not empty at 0
    or n. `right` is a count, or the sum of n scores between 0 and 1.
    """
    p = right / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_figures(right: int, n: int) -> dict[str, float]:
    """Accuracy with its interval, as records hold it."""
    low, high = wilson(right, n)
    return {"accuracy": right / n, "low": low, "high": high}
