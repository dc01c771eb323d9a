"""Figures of outcomes: counted by hand, in closed form, and against slow references."""

from __future__ import annotations

import json
from math import inf, log

import numpy as np
import pytest

from atbench.evaluation.metrics import calibration_figures, confusion_counts, median_distance, per_class, union_accuracy
from atbench.interval import accuracy_figures

NAMES = ("cat", "dog", "owl")


def test_by_class_each_has_its_own_n_and_interval() -> None:
    label = np.array([0, 0, 0, 0, 2, 2, 1])
    right = np.array([1, 1, 1, 0, 0, 1, 1], bool)
    out = per_class(label, right, NAMES)
    assert out["n"] == 7
    assert out["classes"] == [
        {"class": "cat", **accuracy_figures(3, 4), "n": 4},
        {"class": "dog", **accuracy_figures(1, 1), "n": 1},
        {"class": "owl", **accuracy_figures(1, 2), "n": 2},
    ]
    assert out["worst"] == out["classes"][2]


def test_a_class_without_examples_has_no_accuracy_and_is_not_the_worst() -> None:
    out = per_class(np.array([0, 2]), np.array([True, True]), NAMES)
    assert out["classes"][1] == {"class": "dog", "accuracy": None, "low": None, "high": None, "n": 0}
    assert out["worst"]["class"] == "cat", "the first of equals"
    nothing = per_class(np.zeros(0, int), np.zeros(0, bool), NAMES)
    assert nothing["worst"] is None and nothing["n"] == 0


def test_confusion_counts_rows_of_truth() -> None:
    source = np.random.default_rng(0)
    label, predicted = source.integers(3, size=200), source.integers(3, size=200)
    out = confusion_counts(label, predicted, NAMES)
    counts = np.array(out["counts"])
    assert counts.sum() == out["n"] == 200 and out["classes"] == list(NAMES)
    assert np.array_equal(counts.sum(axis=1), np.bincount(label)) and np.trace(counts) == (label == predicted).sum()
    assert counts[0, 2] == ((label == 0) & (predicted == 2)).sum() != counts[2, 0]
    assert confusion_counts(np.zeros(0, int), np.zeros(0, int), NAMES)["counts"] == [[0] * 3] * 3


def binary(confidence: float, right: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n examples of two classes that are predicted to be class 1 with this confidence, of which `right` are."""
    logits = np.tile([0.0, log(confidence / (1 - confidence))], (n, 1))
    return logits, np.array([1] * right + [0] * (n - right))


def test_confidence_that_is_the_accuracy_has_no_calibration_error() -> None:
    parts = [binary(0.9, 18, 20), binary(0.75, 6, 8), binary(0.6, 3, 5)]
    logits, label = (np.concatenate(each) for each in zip(*parts, strict=True))
    out = calibration_figures(logits, label)
    assert out["ece"] == pytest.approx(0, abs=1e-12)
    assert out["accuracy"] == pytest.approx(out["confidence"]) == 27 / 33
    assert {key: out[key] for key in ("accuracy", "low", "high", "n")} == {**accuracy_figures(27, 33), "n": 33}
    filled = [row for row in out["bins"] if row["n"]]
    assert [row["n"] for row in filled] == [5, 8, 20] and len(out["bins"]) == 15
    assert all(row["from"] < row["confidence"] <= row["to"] for row in filled)
    assert {key: filled[0][key] for key in ("accuracy", "low", "high")} == accuracy_figures(3, 5)


def test_overconfidence_in_closed_form() -> None:
    out = calibration_figures(*binary(0.9, 5, 10))
    assert out["ece"] == pytest.approx(0.4) and out["confidence"] == pytest.approx(0.9)
    assert out["nll"] == pytest.approx(-(log(0.9) + log(0.1)) / 2)
    assert out["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2) / 2)


def test_no_confidence_at_all_and_too_much_of_it() -> None:
    even = calibration_figures(np.zeros((6, 10)), np.array([0, 1, 2, 3, 4, 0]))
    assert even["nll"] == pytest.approx(log(10)) and even["brier"] == pytest.approx(0.9)
    assert even["ece"] == pytest.approx(2 / 6 - 0.1)
    sure = calibration_figures(np.array([[1e4, 0.0], [1e4, 0.0]], np.float32), np.array([0, 1]))
    assert sure["nll"] == pytest.approx(5e3) and sure["ece"] == pytest.approx(0.5) and sure["brier"] == 1.0


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    out = calibration_figures(np.zeros((3, 2)), np.array([0, 0, 1]), bins=2)
    assert [row["n"] for row in out["bins"]] == [3, 0]
    assert out["bins"][1] == {
        "from": 0.5, "to": 1.0, "confidence": None, "accuracy": None, "low": None, "high": None, "n": 0,
    }  # fmt: skip


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_against_loops(bins: int) -> None:
    source = np.random.default_rng(bins)
    logits, label = 2 * source.normal(size=(300, 5)), source.integers(5, size=300)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ece = nll = brier = 0.0
    for m in range(1, bins + 1):
        inside = [i for i in range(300) if (m - 1) / bins < p[i].max() <= m / bins]
        if inside:
            gap = sum((p[i].argmax() == label[i]) - p[i].max() for i in inside)
            ece += abs(gap) / 300
    for i in range(300):
        nll -= log(p[i, label[i]]) / 300
        brier += sum((p[i, k] - (k == label[i])) ** 2 for k in range(5)) / 300
    out = calibration_figures(logits, label, bins)
    assert (
        out["ece"] == pytest.approx(ece) and out["nll"] == pytest.approx(nll) and out["brier"] == pytest.approx(brier)
    )
    assert sum(row["n"] for row in out["bins"]) == 300


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_median_of_finite_distances_is_the_median(n: int) -> None:
    distance = np.random.default_rng(n).uniform(size=n).astype(np.float32)
    out = median_distance(distance, np.ones(n, bool))
    assert out["median"] == pytest.approx(float(np.median(distance.astype(float)))) and out["infinite"] == []
    assert out["lower_quartile"] <= out["median"] <= out["upper_quartile"]
    assert {key: out["unbroken"][key] for key in ("accuracy", "low", "high")} == accuracy_figures(0, n) and out[
        "n"
    ] == n


def test_what_is_never_broken_is_infinitely_far() -> None:
    distance = np.array([0.4, 9.0, 0.1, 0.2, 0.3, 0.5, 0.6, 9.0])
    broken = distance < 1
    out = median_distance(distance, broken)
    assert out["lower_quartile"] == pytest.approx((0.2 + 0.3) / 2) and out["median"] == pytest.approx((0.4 + 0.5) / 2)
    assert out["upper_quartile"] is None and out["infinite"] == ["upper_quartile"], "between 0.6 and never"
    assert out["unbroken"] == {**accuracy_figures(2, 8), "n": 8}
    half = median_distance(np.array([0.1, 0.2, inf, inf]), np.array([True, True, False, False]))
    assert half["median"] is None and half["lower_quartile"] == pytest.approx(0.15)
    assert half["infinite"] == ["median", "upper_quartile"]


def test_nothing_that_could_be_broken_has_no_distance() -> None:
    out = median_distance(np.zeros(0), np.zeros(0, bool))
    assert out["n"] == 0 and out["median"] is None and out["infinite"] == [] and out["unbroken"]["accuracy"] is None


def test_the_union_is_what_survives_everything() -> None:
    masks = {
        "linf": np.array([1, 1, 1, 0, 0, 1], bool),
        "l2": np.array([1, 1, 0, 1, 0, 1], bool),
        "l1": np.array([1, 1, 1, 1, 1, 0], bool),
    }
    out = union_accuracy(masks)
    assert out["n"] == 6 and out["union"] == {**accuracy_figures(2, 6), "n": 6}
    assert out["threats"] == {
        name: {**accuracy_figures(count, 6), "n": 6} for name, count in (("linf", 4), ("l2", 4), ("l1", 5))
    }
    assert union_accuracy({"linf": masks["linf"]})["union"] == out["threats"]["linf"]


def test_everything_can_stand_in_a_record() -> None:
    label, logits = np.array([0, 1, 1]), np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 2.0]], np.float32)
    right = logits.argmax(axis=1) == label
    for out in (
        per_class(label, right, NAMES[:2]),
        confusion_counts(label, logits.argmax(axis=1), NAMES[:2]),
        calibration_figures(logits, label),
        median_distance(np.array([0.1, inf, 0.3]), np.array([True, False, True])),
        union_accuracy({"l2": right}),
    ):
        assert json.loads(json.dumps(out, allow_nan=False)) == out
