"""95 % intervals of accuracies (Wilson)."""

from __future__ import annotations

from typing import Any

import numpy as np

Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(right: Any, n: Any) -> tuple[Any, Any]:
    """95 % score interval of the proportion right / n (Wilson 1927), of numbers or arrays: unlike p ± 1.96·σ it stays
    inside [0, 1] and is not empty at 0 or n. `right` is a count, or the sum of n scores between 0 and 1.
    """
    p = right / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def accuracy_figures(right: float, n: int) -> dict[str, float]:
    """Accuracy with its interval, as records hold it."""
    low, high = wilson(right, n)
    return {"accuracy": right / n, "low": float(low), "high": float(high)}
