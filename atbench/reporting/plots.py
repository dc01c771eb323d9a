"""Curves of accuracy against k, against ε and over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.interval import wilson
from atbench.reporting.figure_format import INK, SHADES, Drawing, canvas, shade, vector
from atbench.reporting.wording import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """A line with a band; all values are accuracies in [0, 1]."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def draw_accuracy_by_steps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy under PGD-k against k on a log axis; k = 0 is the clean accuracy."""
    figure, axes = canvas(1, 1, (10.0, 4.0))
    _curves(axes[0], curves)
    # Logarithmic from 1 on, linear below: the one scale that has room for k = 0.
    axes[0].set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = sorted({x for curve in curves for x in curve.x})
    axes[0].set_xticks(ticks, ["clean" if tick == 0 else f"{tick:g}" for tick in ticks])
    axes[0].set_xticks([], minor=True)
    axes[0].set_xlim(left=-0.1)
    axes[0].set_xlabel("steps k of the PGD attack")
    return vector(figure, "steps")


def draw_accuracy_by_eps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy against the radius of the ball; a curve that does not fall to ~0 is a sign of masked gradients."""
    figure, axes = canvas(1, 1, (10.0, 4.0))
    _curves(axes[0], curves)
    axes[0].set_xlabel("radius ε of the ball")
    return vector(figure, "eps")


def draw_training(groups: Mapping[str, Sequence[Sequence[Row]]]) -> Drawing:
    """Rows of metrics.jsonl over epochs, one colour for each group.

    The band of a single run is the 95 % interval of its held-out accuracies. The runs of a group (its seeds) are
    thin lines under their mean, with one sample standard deviation as the band.
    """
    figure, axes = canvas(2, 2, (10.0, 6.4))
    panels = (
        ("training loss", ("train.loss",), 1.0),
        ("held-out clean accuracy, %", ("val.clean",), 100.0),
        ("PGD accuracy, %: held out —, trained on ---", ("val.pgd", "fit.pgd"), 100.0),
        ("robust generalisation gap (trained on − held out), points", ("gap",), 100.0),
    )
    for axis, (title, keys, scale) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10, loc="left", color=INK)
        axis.set_xlabel("epoch")
        for number, (label, runs) in enumerate(groups.items()):
            for style, key in zip(_STYLES, keys, strict=False):
                _over_epochs(axis, runs, key, scale, shade(number), style, label if key == keys[0] else None)
    if len(groups) > 1:
        axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    elif groups:
        _mark_best(axes, next(iter(groups.values())))
    return vector(figure, "training")


def has_adaptive_eps(rows: Sequence[Row]) -> bool:
    """Whether rows of metrics.jsonl are of a method whose examples have radii of their own."""
    return bool(_series(rows, "method.eps_mean"))


def draw_adaptive_eps(rows: Sequence[Row], eps: float | None = None) -> Drawing:
    """Mean radius ε_i of the training examples over epochs, ± one standard deviation; dotted: the attack's `eps`."""
    figure, axes = canvas(1, 1, (10.0, 3.2))
    epochs, mean = (np.array(part) for part in zip(*_series(rows, "method.eps_mean").items(), strict=True))
    spread = np.array(list(_series(rows, "method.eps_std").values()))
    axes[0].plot(epochs, mean, color=shade(0), marker="o", markersize=3.5, linewidth=1.6)
    axes[0].fill_between(epochs, mean - spread, mean + spread, color=shade(0), alpha=0.16, linewidth=0)
    if eps is not None:
        axes[0].axhline(eps, color=INK, linestyle=":", linewidth=1, alpha=0.6)
    axes[0].locator_params("x", integer=True)
    axes[0].set(xlabel="epoch", ylabel="radius of an example")
    return vector(figure, "adaptive_eps")


def draw_watch(rows: Sequence[Row]) -> Drawing:
    """Accuracy under FGSM and PGD over training steps, and dashed lines where training collapsed."""
    figure, axes = canvas(1, 1, (10.0, 3.2))
    steps = [row["step"] for row in rows]
    for number, (key, label) in enumerate((("fgsm", "FGSM"), ("pgd", f"PGD-{rows[-1]['k']}"))):
        axes[0].plot(steps, [100 * row[key] for row in rows], color=shade(number), linewidth=1.6, label=label)
    for row in rows:
        if "collapse" in row:
            axes[0].axvline(row["step"], color=INK, linestyle="--", linewidth=1, alpha=0.6)
    axes[0].set(xlabel="training step", ylabel="accuracy, %", ylim=(-2, 102))
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return vector(figure, "watch")


def _curves(axis: Axes, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        colour, style = shade(number), _STYLES[number // len(SHADES) % len(_STYLES)]
        y, low, high = (100 * np.asarray(values) for values in (curve.y, curve.low, curve.high))
        axis.plot(curve.x, y, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=curve.label)
        axis.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.set_ylim(-2, 102)
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def _over_epochs(
    axis: Axes, runs: Sequence[Sequence[Row]], key: str, scale: float, colour: str, style: str, label: str | None
) -> None:
    """One quantity over epochs: one run with its interval, or the mean and spread of several."""
    lines = [_series(rows, key) for rows in runs]
    lines = [line for line in lines if line]
    if not lines:
        return
    if len(lines) == 1:
        _one_run(axis, runs[0], lines[0], key, scale, colour, style, label)
        return
    for line in lines:
        axis.plot(list(line), scale * np.array(list(line.values())), style, color=colour, alpha=0.3, linewidth=0.7)
    epochs = sorted(set.intersection(*(set(line) for line in lines)))  # a mean over fewer runs is not that mean
    values = scale * np.array([[line[epoch] for epoch in epochs] for line in lines])
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    axis.plot(epochs, mean, style, color=colour, linewidth=1.8, label=label)
    axis.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.16, linewidth=0)


def _one_run(
    axis: Axes,
    rows: Sequence[Row],
    line: Mapping[int, float],
    key: str,
    scale: float,
    colour: str,
    style: str,
    label: str | None,
) -> None:
    values = np.array(list(line.values()))
    axis.plot(list(line), scale * values, style, color=colour, linewidth=1.6, label=label)
    counts = _series(rows, f"{key.partition('.')[0]}.n")
    if key in ("val.clean", "val.pgd") and set(counts) >= set(line):
        n = np.array([counts[epoch] for epoch in line])
        low, high = wilson(values * n, n)
        axis.fill_between(list(line), scale * low, scale * high, color=colour, alpha=0.16, linewidth=0)


def _series(rows: Sequence[Row], key: str) -> dict[int, float]:
    """{epoch: value} of the rows that have the value."""
    flat = [(row["epoch"], flatten(row).get(key)) for row in rows]
    return {epoch: float(value) for epoch, value in flat if isinstance(value, (int, float))}


def _mark_best(axes: Sequence[Axes], runs: Sequence[Sequence[Row]]) -> None:
    """A dotted line at the epoch of the best checkpoint of a single run."""
    epochs = [row["epoch"] for rows in runs for row in rows if row.get("best")]
    if len(runs) == 1 and epochs:
        for axis in axes:
            axis.axvline(epochs[-1], color=INK, linestyle=":", linewidth=1, alpha=0.6)
