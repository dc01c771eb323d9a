"""Robust accuracy against the cost of training, a figure and a table of docs/methods.md, from the runs of docs/cpu.md.

    python -m scripts.cost_figure                                 for the runs of `scripts.cpu_table` that are there

It trains no row. Accuracy, and the epoch in which a robust accuracy was first reached, are of those runs, whose seconds
are those of a busy machine. The cost of each is therefore measured here, one after the other: forward passes are
counted and CPU seconds taken in a training of two epochs, once (`--costs` keeps them).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from atbench.config.registry import conf_dir, entries
from atbench.reporting.figure_format import INK, canvas, shade
from scripts.cpu_table import LAST, overrides
from scripts.table_runs import done, markdown_table, percent, read_metrics, replace_section
from scripts.training_cost import forward_passes, remembered, speed

#: Shown besides all methods of the families "origin" and "efficient".
MULTI_STEP = ("alp", "mart", "trades")
REACHED = 0.6
BEGIN = "<!-- cost, written by a script -->"
DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = ["method", "search", "forward passes an image", "images/s", "attack share %", "PGD-20 %", "seconds"]
HEAD += [f"seconds to {REACHED:.0%} held out"]


@dataclass(frozen=True)
class Row:
    """A method's accuracy and cost. passes: an image, of the whole training. epochs_needed: None if not reached."""

    name: str
    record: dict[str, Any]
    cost: dict[str, Any]
    epochs: int
    epochs_needed: int | None

    @property
    def kind(self) -> str:
        """How many gradients the search of training takes."""
        if self.name == "standard":
            return "no search"
        return "single-step" if self.cost["single_step"] else "multi-step"

    @property
    def robust(self) -> float:
        return 100 * float(self.record["steps"][-1]["accuracy"])

    @property
    def passes(self) -> float:
        return float(self.cost["forward_passes"]) * self.epochs

    @property
    def seconds(self) -> float:
        return float(self.cost["epoch_seconds"]) * self.epochs

    def cells(self) -> list[str]:
        """The figures of a row, in the order of HEAD."""
        needed = self.epochs_needed
        return [
            f"`{self.name}`",
            self.kind,
            f"{self.passes:.0f}",
            f"{self.cost['images_per_second']:.0f}",
            f"{100 * self.cost['attack_share']:.0f}",
            percent(self.record["steps"][-1]),
            f"{self.seconds:.0f}",
            "not reached" if needed is None else f"{needed * self.cost['epoch_seconds']:.0f}",
        ]


def cost(words: Sequence[str]) -> dict[str, Any]:
    """All that is measured of a method's training."""
    return {"forward_passes": forward_passes(words), **speed(words)}


def row(name: str, run: Path, costs: Path, data_dir: Path) -> Row:
    """The row of a finished run."""
    epochs = read_metrics(run, "epoch")
    robust = (epoch["epoch"] for epoch in epochs if "val" in epoch and epoch["val"]["pgd"] >= REACHED)
    words = [*overrides(name), f"data_dir={data_dir}", "logger=none"]
    measured = remembered(costs / f"{name}.json", partial(cost, words))
    return Row(name, json.loads((run / LAST).read_text()), measured, len(epochs), next(robust, None))


def draw(rows: Sequence[Row], path: Path) -> None:
    """PGD-20 against forward passes and against seconds, on log axes, as SVG on white."""
    figure, axes = canvas(2, 1, (9.0, 11.0))
    _panel(axes[0], rows, [row.passes for row in rows], "forward passes of an image in all of training")
    _panel(axes[1], rows, [row.seconds for row in rows], "CPU seconds of training, one thread")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cost"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def _panel(axis: Axes, rows: Sequence[Row], costs: Sequence[float], label: str) -> None:
    pairs = list(zip(costs, rows, strict=True))
    for number, (kind, marker) in enumerate((("multi-step", "s"), ("single-step", "o"), ("no search", "^"))):
        shown = [(x, row.robust) for x, row in pairs if row.kind == kind]
        axis.scatter([x for x, _ in shown], [y for _, y in shown], s=22, marker=marker, color=shade(number), label=kind)
    axis.set_xscale("log")
    axis.set(xlabel=label, ylabel="accuracy under PGD-20, %")
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    placed: list[tuple[float, float]] = []
    for x, row in sorted(pairs, key=lambda pair: pair[1].robust):
        near = [y for other, y in placed if abs(math.log(other / x)) < 0.5]
        height = max([row.robust, *(y + 2.2 for y in near)])  # above the labels beside it
        placed.append((x, height))
        arrow = {"arrowstyle": "-", "color": INK, "alpha": 0.3, "linewidth": 0.5}
        options = {"textcoords": ("offset points", "data"), "va": "center", "fontsize": 7, "color": INK}
        axis.annotate(row.name, (x, row.robust), xytext=(8, height), arrowprops=arrow, **options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/cpu"), help="where the runs of docs/cpu.md lie")
    parser.add_argument("--costs", type=Path, default=Path("runs/cpu_cost"), help="where what was measured is kept")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies")
    args = parser.parse_args(argv)
    known = entries("methods", [conf_dir()])
    names = [each["name"] for each in known if each["family"] in ("origin", "efficient") or each["name"] in MULTI_STEP]
    found = [(name, run) for name in names if (run := done(args.runs / name, LAST))]
    rows = sorted((row(*each, args.costs, args.data_dir) for each in found), key=lambda row: row.passes)
    draw(rows, DOCS / "cost.svg")
    processors = ", ".join(sorted({row.cost["processor"] for row in rows}))
    told = f"Seconds and images/s: CPU time of one thread, {processors}."
    text = ["![Robust accuracy against cost](cost.svg)", markdown_table(HEAD, (row.cells() for row in rows)), told]
    replace_section(DOCS / "methods.md", "\n\n".join(text), BEGIN)


if __name__ == "__main__":
    main()
