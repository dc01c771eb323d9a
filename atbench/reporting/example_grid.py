"""Drawings of examples: clean and adversarial images, confusion and transfer matrix, reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.reporting.figure_format import COLUMN, INK, MARKERS, PAGE, Drawing, canvas, legend, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RED = "#b3261e"
_ON_CELL = "#1b1e24"  # not INK, which is the page's: a cell is as light in the dark
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
    figure, axes = canvas(3, count, (PAGE * (count + 0.5) / (columns + 0.5), 3.1))
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
            axis.set_xlabel(notes[row][column], fontsize=6, color=_RED if wrong else INK, labelpad=2)
            axis.spines[:].set_visible(False)
        axes[row * count].set_ylabel(titles[row], fontsize=7)
    return Drawing(figure)


def draw_confusion(name: str, counts: np.ndarray, classes: Sequence[str]) -> Drawing:
    """Counts (K, K) of true class by predicted class, coloured by the share of the true class; diagonal: right."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[str(count) if count else "" for count in row] for row in counts]
    return _matrix(name, share, texts, classes, "true class", "predicted under attack")


def draw_transfer(name: str, accuracy: np.ndarray) -> Drawing:
    """Accuracy (M, M) of an ensemble's members (columns) on images made on each of them (rows), in percent."""
    texts = [[f"{100 * value:.0f}" for value in row] for row in accuracy]
    names = [str(number) for number in range(len(accuracy))]
    return _matrix(name, accuracy, texts, names, "member attacked", "member evaluated")


def _matrix(
    name: str, share: np.ndarray, texts: Sequence[Sequence[str]], names: Sequence[str], rows: str, columns: str
) -> Drawing:
    """Shares in [0, 1] as colours with a text in each cell."""
    figure, axes = canvas(1, 1, (COLUMN, COLUMN))
    axis, size = axes[0], 7 if len(names) <= 10 else 5
    axis.pcolormesh(share, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    places = np.arange(len(names)) + 0.5
    axis.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0)
    axis.set_yticks(places, names)
    axis.set(xlabel=columns, ylabel=rows)
    for (row, column), value in np.ndenumerate(share):
        if text := texts[row][column]:
            ink = "white" if value > 0.55 else _ON_CELL
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink)
    return Drawing(figure, name)


def draw_reliability(diagrams: Mapping[str, Mapping[str, Any]], name: str) -> Drawing:
    """Accuracy against confidence, bin by bin, with 95 % intervals, and how many examples each bin holds.

    diagrams: by name, `bins` as in a record's calibration. On the dotted line confidence equals accuracy; below it the
    network is overconfident.
    """
    figure, axes = canvas(2, 1, (COLUMN, 3.4))
    axes[0].plot((0, 100), (0, 100), ":", color=INK, alpha=0.6, linewidth=1)
    for number, (label, diagram) in enumerate(diagrams.items()):
        _diagram(axes, number, len(diagrams), f"{label}, ECE {100 * diagram['ece']:.1f} points", diagram["bins"])
    axes[0].set(xlim=(0, 101), ylim=(-2, 102), xlabel="confidence, %", ylabel="accuracy, %")
    axes[1].set(xlim=(0, 101), xlabel="confidence, %", ylabel="share of examples, %")
    axes[1].set_axisbelow(True)
    legend(figure, axes[0])
    return Drawing(figure, name)


def _diagram(axes: Sequence[Axes], number: int, of: int, label: str, bins: Sequence[Mapping[str, Any]]) -> None:
    full = [each for each in bins if each["n"]]
    x, y, low, high = (
        100 * np.array([each[key] for each in full]) for key in ("confidence", "accuracy", "low", "high")
    )
    axes[0].errorbar(
        x, y, (np.maximum(y - low, 0), np.maximum(high - y, 0)), color=shade(number), marker=MARKERS[number],
        markersize=3.2, linewidth=1.3, elinewidth=0.7, label=label,
    )  # fmt: skip
    width = 100 / len(bins) / of
    left = [100 * each["from"] + number * width for each in full]
    share = 100 * np.array([each["n"] for each in full]) / sum(each["n"] for each in full)
    axes[1].bar(left, share, 0.9 * width, align="edge", color=shade(number))
