"""Figures: accuracy against k and against ε, curves over training, and the grid of pictures.

Drawn with matplotlib's object interface, so that no state is shared and no window is asked for. Each comes twice: SVG
for a page (ink is `currentColor`, so it follows light and dark), PNG on white for everything else. The same data gives
the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.reporting.wording import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#1b1e23"
_COLOURS = (
    "#2f7fc1",
    "#d9772b",
    "#3f9b6c",
    "#b3558c",
    "#7d73cf",
    "#9c7c22",
    "#3aa3ad",
    "#c4505a",
    "#7f8a96",
    "#5f9e2f",
)
_STYLES = ("-", "--", ":", "-.")
_Z95 = 1.959963984540054

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG and, where it has lines rather than pixels, as inline SVG."""

    svg: str | None
    png: bytes


@dataclass(frozen=True)
class Curve:
    """A line with its band; all values are accuracies in [0, 1]."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def accuracy_by_steps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy under PGD-k against k on a log axis; k = 0 is the clean accuracy."""
    figure, axes = _figure(1, 1, (10.0, 4.0))
    _curves(axes[0], curves)
    # Logarithmic from 1 on, linear below: the one scale that has room for k = 0.
    axes[0].set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = sorted({x for curve in curves for x in curve.x})
    axes[0].set_xticks(ticks, ["clean" if tick == 0 else f"{tick:g}" for tick in ticks])
    axes[0].set_xticks([], minor=True)
    axes[0].set_xlim(left=-0.1)
    axes[0].set_xlabel("steps k of the PGD attack")
    return _drawing(figure, "steps")


def accuracy_by_eps(curves: Sequence[Curve]) -> Drawing:
    """Accuracy against the radius of the ball; a model whose curve does not fall to ~0 hides its gradients."""
    figure, axes = _figure(1, 1, (10.0, 4.0))
    _curves(axes[0], curves)
    axes[0].set_xlabel("radius ε of the ball")
    return _drawing(figure, "eps")


def training(groups: Mapping[str, Sequence[Sequence[Row]]]) -> Drawing:
    """Rows of metrics.jsonl over epochs, one colour a group. A single run shows the 95 % interval of its held-out
    figures as a band; the runs of a group (its seeds) show as thin lines under their mean, with one sample standard
    deviation as the band."""
    figure, axes = _figure(2, 2, (10.0, 6.4))
    panels = (
        ("training loss", ("train.loss",), 1.0),
        ("held-out clean accuracy, %", ("val.clean",), 100.0),
        ("PGD accuracy, %: held out —, trained on ---", ("val.pgd", "fit.pgd"), 100.0),
        ("robust generalisation gap (trained on − held out), points", ("gap",), 100.0),
    )
    for axis, (title, keys, scale) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10, loc="left", color=_INK)
        axis.set_xlabel("epoch")
        for number, (label, runs) in enumerate(groups.items()):
            for style, key in zip(_STYLES, keys, strict=False):
                _over_epochs(axis, runs, key, scale, _colour(number), style, label if key == keys[0] else None)
    if len(groups) > 1:
        axes[0].legend(frameon=False, fontsize=8, labelcolor=_INK)
    elif groups:
        _mark_best(axes, next(iter(groups.values())))
    return _drawing(figure, "training")


def grid(outcomes: Mapping[str, np.ndarray], columns: int = 10) -> Drawing:
    """Rows clean, adversarial, difference, from the arrays of an evaluation. Underneath: the truth and what the network
    predicts.

    The difference is multiplied by the factor that its row states and drawn around mid-grey (grey: not changed).
    """
    count = min(columns, len(outcomes["shown_index"]))
    clean, adversarial = (np.moveaxis(outcomes[name][:count], 1, -1) for name in ("shown_x", "shown_adv"))
    change = adversarial - clean
    peak = float(np.abs(change).max())
    factor = 0.5 / peak if peak > 0 else 1.0
    truth = outcomes["label"][outcomes["shown_index"][:count]]
    notes = (
        [f"true {y}\npredicts {p}" for y, p in zip(truth, outcomes["shown_clean"], strict=False)],
        [
            f"predicts {p}\n{'fooled' if p != y else 'holds'}"
            for y, p in zip(truth, outcomes["shown_broken"], strict=False)
        ],
        [f"max {255 * np.abs(delta).max():.3g}/255" for delta in change],
    )
    figure, axes = _figure(3, count, (1.05 * count + 0.9, 4.3))
    titles = ("clean", "adversarial", f"difference × {factor:.3g}")
    for row, pictures in enumerate((clean, adversarial, np.clip(0.5 + factor * change, 0, 1))):
        for column in range(count):
            axis = axes[row * count + column]
            # imshow takes (H, W) for grey and (H, W, 3) for colour.
            axis.imshow(
                pictures[column].squeeze(-1) if pictures.shape[-1] == 1 else pictures[column], "gray", vmin=0, vmax=1
            )
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            wrong = row < 2 and (outcomes["shown_clean"], outcomes["shown_broken"])[row][column] != truth[column]
            axis.set_xlabel(notes[row][column], fontsize=7, color="#b3261e" if wrong else _INK)
            axis.spines[:].set_visible(False)
        axes[row * count].set_ylabel(titles[row], fontsize=8)
    return Drawing(svg=None, png=_png(figure))


def _figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # half a second and more: only what draws pays for it

    figure = Figure(figsize=inches, dpi=130, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(True, color=_INK, alpha=0.13, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_INK)
        axis.tick_params(colors=_INK, labelsize=8)
        axis.xaxis.label.set_color(_INK)
        axis.yaxis.label.set_color(_INK)
    return figure, axes


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _curves(axis: Axes, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        colour, style = _colour(number), _STYLES[number // len(_COLOURS) % len(_STYLES)]
        y, low, high = (100 * np.asarray(values) for values in (curve.y, curve.low, curve.high))
        axis.plot(curve.x, y, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=curve.label)
        axis.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.set_ylim(-2, 102)
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8, labelcolor=_INK)


def _over_epochs(
    axis: Axes, runs: Sequence[Sequence[Row]], key: str, scale: float, colour: str, style: str, label: str | None
) -> None:
    """One quantity over epochs: of one run with its interval, or of several as their mean and spread."""
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
        low, high = _wilson(values, np.array([counts[epoch] for epoch in line]))
        axis.fill_between(list(line), scale * low, scale * high, color=colour, alpha=0.16, linewidth=0)


def _series(rows: Sequence[Row], key: str) -> dict[int, float]:
    """Epoch -> value, for the rows that have the value."""
    flat = [(row["epoch"], flatten(row).get(key)) for row in rows]
    return {epoch: float(value) for epoch, value in flat if isinstance(value, (int, float))}


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % Wilson score interval of a share of n."""
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * np.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    return centre - half, centre + half


def _mark_best(axes: Sequence[Axes], runs: Sequence[Sequence[Row]]) -> None:
    """A dotted line at the epoch of the kept checkpoint, where there is one run to speak of."""
    epochs = [row["epoch"] for rows in runs for row in rows if row.get("best")]
    if len(runs) == 1 and epochs:
        for axis in axes:
            axis.axvline(epochs[-1], color=_INK, linestyle=":", linewidth=1, alpha=0.6)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawing(figure: Figure, name: str) -> Drawing:
    import matplotlib

    png = _png(figure)
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    buffer = io.StringIO()
    # Text stays text (small, searchable, in the page's font); the salt makes element names the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Drawing(svg=_inline(buffer.getvalue(), name), png=png)


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: no prologue, no metadata, ink in the page's colour, names of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).replace(_INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
