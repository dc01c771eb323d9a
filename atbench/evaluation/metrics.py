"""Figures of per-example outcomes: by class, confusions, calibration, distances, the worst over several threats.

NumPy in, plain values out, as a record holds them. What is not defined (the accuracy of a class without examples) is
None. Proportions carry their n and Wilson interval; of a mean that is no proportion only n is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atbench.interval import accuracy_figures

Array = NDArray[Any]

QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
NOTHING = {"accuracy": None, "low": None, "high": None, "n": 0}


def mask_accuracy(mask: Array) -> dict[str, float]:
    """The share of a boolean mask (n,) with interval."""
    return accuracy_figures(int(mask.sum()), len(mask))


def proportion(right: Array) -> dict[str, Any]:
    """The share of a boolean mask with interval and n; None where there is nothing to take a share of."""
    return {**mask_accuracy(right), "n": len(right)} if len(right) else dict(NOTHING)


def per_class(label: Array, right: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy of each class, and the worst class: label int (n,), right bool (n,), one name a class.

    Returns {"n", "classes": [{"class", "accuracy", "low", "high", "n"}, ...], "worst": one of them}. The first of
    equally bad classes is the worst; None if there is no example at all.

    The worst of K noisy figures lies lower than the class it names: its interval is that class's own, and makes no
    allowance for having been picked.
    """
    rows = [{"class": name, **proportion(right[label == k])} for k, name in enumerate(classes)]
    seen = [row for row in rows if row["n"]]
    return {"n": len(label), "classes": rows, "worst": min(seen, key=lambda row: row["accuracy"], default=None)}


def confusion_counts(label: Array, predicted: Array, classes: Sequence[str]) -> dict[str, Any]:
    """How often what is of one class is taken for which: {"n", "classes", "counts"}, counts K × K.

    counts[i][j] is the number of examples of class i that are predicted to be j; label and predicted int (n,).
    """
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (label, predicted), 1)
    return {"n": len(label), "classes": list(classes), "counts": counts.tolist()}


def calibration_figures(logits: Array, label: Array, bins: int = 15) -> dict[str, Any]:
    """Whether confidence is what accuracy is (Guo et al. 2017, ICML, arXiv 1706.04599): logits (n, K), label (n,).

    With p = softmax(logits), ŷ = argmax p and confidence max p, in bins I_m = ((m − 1)/M, m/M] of confidence:

        ece   = Σ_m |I_m|/n · |accuracy(I_m) − confidence(I_m)|      in [0, 1]; grows with M and shrinks with n
        nll   = mean of −log p_y, in nats
        brier = mean of Σ_k (p_k − [k = y])², in [0, 2]

    Returns {"n", "ece", "nll", "brier", "confidence", "accuracy", "low", "high", "bins": [{"from", "to", "confidence",
    "accuracy", "low", "high", "n"}, ...]}: the bins are the reliability diagram. Needs at least one example.
    """
    n = len(label)
    scores = logits.astype(np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    p, rows = np.exp(log_p), np.arange(n)
    confidence, right = p.max(axis=1), logits.argmax(axis=1) == label
    # Bins are open on the left: a confidence of exactly m/M belongs to the lower one.
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    diagram = []
    for m in range(bins):
        inside = place == m
        mean = float(confidence[inside].mean()) if inside.any() else None
        diagram.append({"from": m / bins, "to": (m + 1) / bins, "confidence": mean, **proportion(right[inside])})
    gaps = [row["n"] * abs(row["accuracy"] - row["confidence"]) for row in diagram if row["n"]]
    return {
        "ece": sum(gaps) / n,
        "nll": float(-log_p[rows, label].mean()),
        "brier": float(((p - np.eye(p.shape[1])[label]) ** 2).sum(axis=1).mean()),
        "confidence": float(confidence.mean()),
        **proportion(right),
        "bins": diagram,
    }


def median_distance(distance: Array, broken: Array) -> dict[str, Any]:
    """Median and quartiles of minimum-norm distances, over all examples that are right without attack.

    distance (n,), in the attack's norm; broken bool (n,): where the attack found anything. An example that was never
    broken counts as infinitely far, so that giving up on the hard ones does not shorten the median. Distances found are
    upper bounds of the true ones, and so are their quantiles.

    Returns {"n", "unbroken": share with interval, "lower_quartile", "median", "upper_quartile", "infinite": [...]}. A
    quantile that is infinite is None and its name stands in `infinite`. Where q·n is a whole number, the q-quantile is
    the mean of the two distances around it.
    """
    far = np.sort(np.where(broken, distance, np.inf).astype(np.float64))
    quantiles = {name: _quantile(far, q) for name, q in QUARTILES.items()} if len(far) else dict.fromkeys(QUARTILES)
    infinite = [name for name, value in quantiles.items() if value == np.inf]
    return {
        "n": len(far),
        "unbroken": proportion(~broken),
        **{name: None if name in infinite else value for name, value in quantiles.items()},
        "infinite": infinite,
    }


def _quantile(ascending: Array, q: float) -> float:
    place = q * len(ascending)
    upper = ceil(place) if place % 1 else int(place) + 1
    return float((ascending[ceil(place) - 1] + ascending[upper - 1]) / 2)


def union_accuracy(masks: Mapping[str, Array]) -> dict[str, Any]:
    """Robust accuracy against several threats at once: right under every one of them (Tramèr & Boneh 2019, arXiv
    1904.13000; Maini et al. 2020, arXiv 1909.04068).

    masks: bool (n,) by name of threat, what is still right under it, of the same examples. Returns {"n", "threats":
    {name: figure}, "union": figure}. The union is never above the least of them, and below it where different examples
    break.
    """
    return {
        "n": len(next(iter(masks.values()))),
        "threats": {name: proportion(mask) for name, mask in masks.items()},
        "union": proportion(np.logical_and.reduce(list(masks.values()))),
    }


def corruption_figures(facts: Mapping[str, Any], masks: Array) -> dict[str, Any]:
    """Accuracies on corrupted images, and their mean: bool masks (R, n), whose `seed`, `name`, `severity` facts hold.

    An image is in each of the R rows, so that the interval of their mean is that of n proportions, not of R·n
    independent ones: Wilson's at this mean, which is wide enough, for no score between 0 and 1 varies more than a
    proportion of the same mean.
    """
    n, mean = masks.shape[1], float(masks.mean())
    rows = [
        {"name": row["name"], "severity": row["severity"], **mask_accuracy(mask), "n": n}
        for row, mask in zip(facts["rows"], masks, strict=True)
    ]
    figures = {**accuracy_figures(mean * n, n), "accuracy": mean, "n": n}
    return {"n": n, "seed": facts["seed"], "rows": rows, "mean": figures}
