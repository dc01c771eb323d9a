"""Drawings of examples: clean and adversarial images, confusion and transfer matrix, reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.reporting.figure_format import INK, Drawing, canvas, raster, shade, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RED = "#b3261e"
MOST_CLASSES = 20  # more cannot be read in a matrix


def draw_example_grid(outcomes: Mapping[str, np.ndarray], columns: int = 10) -> Drawing:
    """Rows clean, adversarial, difference, with true and predicted class, from the arrays of an evaluation.

    The difference is multiplied by the factor in its title and drawn around mid-grey.
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
            f"predicts {p}\n{'broken' if p != y else 'robust'}"
            for y, p in zip(truth, outcomes["shown_broken"], strict=False)
        ],
        [f"max {255 * np.abs(delta).max():.3g}/255" for delta in change],
    )
    figure, axes = canvas(3, count, (1.05 * count + 0.9, 4.3))
    titles = ("clean", "adversarial", f"difference × {factor:.3g}")
    for row, pictures in enumerate((clean, adversarial, np.clip(0.5 + factor * change, 0, 1))):
        for column in range(count):
            axis = axes[row * count + column]
            # imshow takes (H, W) for grey and (H, W, 3) for colour.
            image = pictures[column].squeeze(-1) if pictures.shape[-1] == 1 else pictures[column]
            axis.imshow(image, "gray", vmin=0, vmax=1)
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            wrong = row < 2 and (outcomes["shown_clean"], outcomes["shown_broken"])[row][column] != truth[column]
            axis.set_xlabel(notes[row][column], fontsize=7, color=_RED if wrong else INK)
            axis.spines[:].set_visible(False)
        axes[row * count].set_ylabel(titles[row], fontsize=8)
    return raster(figure)


def draw_confusion(counts: np.ndarray, classes: Sequence[str]) -> Drawing:
    """Counts (K, K) of true class by predicted class, coloured by the share of the true class; diagonal: right."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[str(count) if count else "" for count in row] for row in counts]
    return _matrix(share, texts, classes, "true class", "predicted under attack", 0.42)


def draw_transfer(accuracy: np.ndarray) -> Drawing:
    """Accuracy (M, M) of an ensemble's members (columns) on images made on each of them (rows), in percent."""
    texts = [[f"{100 * value:.0f}" for value in row] for row in accuracy]
    names = [str(number) for number in range(len(accuracy))]
    return _matrix(accuracy, texts, names, "member attacked", "member evaluated", 0.6)


def _matrix(
    share: np.ndarray, texts: Sequence[Sequence[str]], names: Sequence[str], rows: str, columns: str, inches: float
) -> Drawing:
    """Shares in [0, 1] as colours with a text in each cell, `inches` wide."""
    side = 1.6 + inches * len(names)
    figure, axes = canvas(1, 1, (side, side))
    axis = axes[0]
    axis.imshow(share, "Blues", vmin=0, vmax=1)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    turn = 90 if max(map(len, names)) > 3 else 0
    axis.set_xticks(range(len(names)), names, rotation=turn)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=columns, ylabel=rows)
    for (row, column), value in np.ndenumerate(share):
        if text := texts[row][column]:
            ink = "white" if value > 0.55 else INK
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    return raster(figure)


def draw_reliability(diagrams: Mapping[str, Mapping[str, Any]], name: str) -> Drawing:
    """Accuracy against confidence, bin by bin, with 95 % intervals, and how many examples each bin holds.

    diagrams: by name, `bins` as in a record's calibration. On the dotted line confidence equals accuracy; below it the
    network is overconfident.
    """
    figure, axes = canvas(1, 2, (10.0, 4.0))
    axes[0].plot((0, 100), (0, 100), ":", color=INK, alpha=0.6, linewidth=1)
    for number, (label, diagram) in enumerate(diagrams.items()):
        _diagram(axes, number, len(diagrams), f"{label}, ECE {100 * diagram['ece']:.1f} points", diagram["bins"])
    axes[0].set(xlim=(0, 101), ylim=(-2, 102), xlabel="confidence, %", ylabel="accuracy, %")
    axes[1].set(xlim=(0, 101), xlabel="confidence, %", ylabel="share of the examples, %")
    axes[1].set_axisbelow(True)
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    return vector(figure, name)


def _diagram(axes: Sequence[Axes], number: int, of: int, label: str, bins: Sequence[Mapping[str, Any]]) -> None:
    full = [each for each in bins if each["n"]]
    x, y, low, high = (
        100 * np.array([each[key] for each in full]) for key in ("confidence", "accuracy", "low", "high")
    )
    axes[0].errorbar(
        x, y, (np.maximum(y - low, 0), np.maximum(high - y, 0)), color=shade(number), marker="o", markersize=3.5,
        linewidth=1.4, elinewidth=0.7, label=label,
    )  # fmt: skip
    width = 100 / len(bins) / of
    left = [100 * each["from"] + number * width for each in full]
    share = 100 * np.array([each["n"] for each in full]) / sum(each["n"] for each in full)
    axes[1].bar(left, share, 0.9 * width, align="edge", color=shade(number))
