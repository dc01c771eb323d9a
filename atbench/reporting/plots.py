"""Curves of accuracy against k, against ε and over training; rows of a comparison as points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.interval import wilson
from atbench.reporting.figure_format import COLUMN, INK, MARKERS, SHADES, Drawing, canvas, legend, line, shade
from atbench.reporting.wording import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")
_SIZE = (COLUMN, 2.3)
#: Quantities over epochs by name of the figure: keys of a row of metrics.jsonl, what they are, and their factor.
OVER_EPOCHS: Mapping[str, tuple[Mapping[str, str], str, float]] = {
    "training": ({"val.pgd": "PGD, held out", "fit.pgd": "PGD, trained on", "val.clean": "clean, held out"},
                 "accuracy, %", 100.0),
    "loss": ({"train.loss": "loss"}, "training loss", 1.0),
    "gap": ({"gap": "gap"}, "generalisation gap, points", 100.0),
}  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """A line with a band; all values are accuracies in [0, 1]."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A row of a comparison. x: what is drawn along the axis; y: robust accuracy, in percent, with a band."""

    label: str
    x: float
    y: float
    low: float
    high: float


def draw_accuracy_by_steps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy under PGD-k against k on a log axis; k = 0 is the clean accuracy."""
    figure, axes = canvas(1, 1, _SIZE)
    _curves(axes[0], curves)
    # Logarithmic from 1 on, linear below: the one scale that has room for k = 0.
    axes[0].set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = sorted({x for curve in curves for x in curve.x})
    axes[0].set_xticks(ticks, ["clean" if tick == 0 else f"{tick:g}" for tick in ticks])
    axes[0].set_xticks([], minor=True)
    axes[0].set_xlim(left=-0.1)
    axes[0].set_xlabel("steps k of PGD")
    legend(figure, axes[0])
    return Drawing(figure, "steps")


def draw_accuracy_by_eps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy against the radius of the ball; a curve that does not fall to ~0 is a sign of masked gradients."""
    figure, axes = canvas(1, 1, _SIZE)
    _curves(axes[0], curves)
    axes[0].set_xlabel("radius ε of the ball")
    legend(figure, axes[0])
    return Drawing(figure, "eps")


def draw_over_epochs(name: str, groups: Mapping[str, Sequence[Sequence[Row]]]) -> Drawing:
    """Quantities of OVER_EPOCHS over epochs: each of a single group has a colour, else each group has one.

    The band of a single run is the 95 % interval of its held-out accuracies. The runs of a group (its seeds) are
    thin lines under their mean, with one sample standard deviation as the band. Dotted: the best checkpoint's epoch.
    """
    figure, axes = canvas(1, 1, _SIZE)
    keys, words, scale = OVER_EPOCHS[name]
    for number, (label, runs) in enumerate(groups.items()):
        for at, (key, quantity) in enumerate(keys.items() if len(groups) == 1 else [*keys.items()][:1]):
            shown, own = (at, quantity) if len(groups) == 1 else (number, label)
            _over_epochs(axes[0], runs, key, scale, shade(shown), _STYLES[at], own, MARKERS[shown % len(MARKERS)])
    axes[0].set(xlabel="epoch", ylabel=words if len(groups) == 1 else f"{words} ({next(iter(keys.values()))})")
    axes[0].locator_params("x", integer=True)
    if len(groups) == 1:
        _mark_best(axes[0], next(iter(groups.values())))
    if len(groups) > 1 or len(keys) > 1:
        legend(figure, axes[0])
    return Drawing(figure, name)


def adapted(rows: Sequence[Row]) -> list[str]:
    """What rows of metrics.jsonl say that the method adapts, besides the spread of what has one."""
    names = dict.fromkeys(name for row in rows for name in row.get("method", {}))
    return [name for name in names if not name.endswith("_std") and _series(rows, f"method.{name}")]


def draw_adapted(name: str, runs: Mapping[str, Sequence[Row]], eps: float | None = None) -> Drawing:
    """What methods adapt over epochs, ± one standard deviation where they tell it; dotted: the attack's `eps`."""
    figure, axes = canvas(1, 1, _SIZE)
    for number, (label, rows) in enumerate(runs.items()):
        epochs, mean = (np.array(part) for part in zip(*_series(rows, f"method.{name}").items(), strict=True))
        axes[0].plot(epochs, mean, **line(number), label=label if len(runs) > 1 else None)
        spread = np.array(list(_series(rows, f"method.{name.removesuffix('_mean')}_std").values()))
        if spread.size:
            axes[0].fill_between(epochs, mean - spread, mean + spread, color=shade(number), alpha=0.16, linewidth=0)
    if eps is not None:
        axes[0].axhline(eps, color=INK, linestyle=":", linewidth=1, alpha=0.6)
    axes[0].locator_params("x", integer=True)
    axes[0].set(xlabel="epoch", ylabel={"eps_mean": "radius of an example"}.get(name, name))
    legend(figure, axes[0])
    return Drawing(figure, f"adapted_{name}")


def draw_watch(rows: Sequence[Row]) -> Drawing:
    """Accuracy under FGSM and PGD over training steps, and dashed lines where training collapsed."""
    figure, axes = canvas(1, 1, _SIZE)
    steps = [row["step"] for row in rows]
    for number, (key, label) in enumerate((("fgsm", "FGSM"), ("pgd", f"PGD-{rows[-1]['k']}"))):
        style = {**line(number), "markevery": max(1, len(rows) // 12)}
        axes[0].plot(steps, [100 * row[key] for row in rows], **style, label=label)
    for row in rows:
        if "collapse" in row:
            axes[0].axvline(row["step"], color=INK, linestyle="--", linewidth=1, alpha=0.6)
    axes[0].set(xlabel="training step", ylabel="accuracy, %", ylim=(-2, 102))
    legend(figure, axes[0])
    return Drawing(figure, "watch")


def frontier(points: Sequence[Point], cost: bool) -> list[Point]:
    """The points that no other one beats in both: more robust, and further right (cost: further left)."""
    best, found = -np.inf, []
    for point in sorted(points, key=lambda point: (point.x if cost else -point.x, -point.y)):
        if point.y > best:
            best = point.y
            found.append(point)
    return found


def log_ticks(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis within positive values, 1, 2 and 5 times the powers of ten; fewer than two where the
    values lie so near together that a linear axis shows them better.
    """
    low, high = int(np.floor(np.log10(min(values)))), int(np.ceil(np.log10(max(values))))
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if min(values) <= tick <= max(values)]


def draw_points(name: str, points: Sequence[Point], words: str, cost: bool) -> Drawing:
    """Robust accuracy of rows against `words`, with the frontier; cost: less is better, and a wide axis logarithmic."""
    figure, axes = canvas(1, 1, (COLUMN, 2.7))
    axis, front = axes[0], frontier(points, cost)
    for number, point in enumerate(points):
        style = {**line(number), "linestyle": "none", "markersize": 5}
        axis.errorbar(point.x, point.y, [[point.y - point.low], [point.high - point.y]], **style, elinewidth=0.6)
        if point in front or len(points) <= 6:
            axis.annotate(point.label, (point.x, point.y), (4, 3), textcoords="offset points", fontsize=6.5, color=INK)
    if cost and len(ticks := log_ticks([point.x for point in points])) > 1:
        axis.set_xscale("log")
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xticks([], minor=True)
    axis.plot(
        [p.x for p in front], [p.y for p in front], "--", color=INK, linewidth=0.9, alpha=0.6,
        drawstyle="steps-post" if cost else "steps-pre", zorder=0,
    )  # fmt: skip
    axis.margins(x=0.12, y=0.1)
    axis.set(xlabel=words, ylabel="robust accuracy, %")
    return Drawing(figure, name)


def _curves(axis: Axes, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        y, low, high = (100 * np.asarray(values) for values in (curve.y, curve.low, curve.high))
        style = _STYLES[number // len(SHADES) % len(_STYLES)]
        axis.plot(curve.x, y, **line(number), linestyle=style, label=curve.label)
        axis.fill_between(curve.x, low, high, color=shade(number), alpha=0.16, linewidth=0)
    axis.set_ylim(-2, 102)
    axis.set_ylabel("accuracy, %")


def _over_epochs(
    axis: Axes, runs: Sequence[Sequence[Row]], key: str, scale: float, colour: str, style: str, label: str | None,
    marker: str = "",
) -> None:  # fmt: skip
    """One quantity over epochs: one run with its interval, or the mean and spread of several."""
    lines = [_series(rows, key) for rows in runs]
    lines = [line for line in lines if line]
    if not lines:
        return
    epochs = sorted(set.intersection(*(set(line) for line in lines)))  # a mean over fewer runs is not that mean
    values = scale * np.array([[line[epoch] for epoch in epochs] for line in lines])
    mean = values.mean(axis=0)
    if len(lines) > 1:
        for each in lines:
            axis.plot(list(each), scale * np.array(list(each.values())), style, color=colour, alpha=0.3, linewidth=0.7)
        spread = values.std(axis=0, ddof=1)
        low, high = mean - spread, mean + spread
    else:
        low, high = _interval(runs[0], lines[0], key, scale)
    few = max(1, len(epochs) // 10)
    axis.plot(epochs, mean, style, color=colour, linewidth=1.4, label=label, marker=marker, markersize=3, markevery=few)
    if len(low):
        axis.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0)


def _interval(rows: Sequence[Row], line: Mapping[int, float], key: str, scale: float) -> tuple[Any, Any]:
    """The 95 % interval of a held-out accuracy of one run; empty of everything else."""
    counts = _series(rows, f"{key.partition('.')[0]}.n")
    if key not in ("val.clean", "val.pgd") or not set(counts) >= set(line):
        return (), ()
    n = np.array([counts[epoch] for epoch in line])
    low, high = wilson(np.array(list(line.values())) * n, n)
    return scale * low, scale * high


def _series(rows: Sequence[Row], key: str) -> dict[int, float]:
    """{epoch: value} of the rows that have the value."""
    flat = [(row["epoch"], flatten(row).get(key)) for row in rows]
    return {epoch: float(value) for epoch, value in flat if isinstance(value, (int, float))}


def _mark_best(axis: Axes, runs: Sequence[Sequence[Row]]) -> None:
    """A dotted line at the epoch of the best checkpoint of a single run."""
    epochs = [row["epoch"] for rows in runs for row in rows if row.get("best")]
    if len(runs) == 1 and epochs:
        axis.axvline(epochs[-1], color=INK, linestyle=":", linewidth=1, alpha=0.6)
