"""Rows of a measurement, the bars that they are held to, and how both are shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Bar:
    """What a figure should be at least, or at most, and why."""

    why: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"a bar is at_least or at_most: {self}")

    def holds(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= float(self.at_most or 0)

    def text(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, its value in each round, and its bar if there is one."""

    name: str
    what: str
    unit: str
    values: tuple[float, ...]
    bar: Bar | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str | None:
        """Of the median: `pass` or `falls short`; None without a bar."""
        return None if self.bar is None else "pass" if self.bar.holds(self.median) else "falls short"

    def record(self) -> dict[str, Any]:
        """The row as JSON has it."""
        bar = self.bar and {"at_least": self.bar.at_least, "at_most": self.bar.at_most, "why": self.bar.why}
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "values": list(self.values),
            "bar": bar,
            "verdict": self.verdict,
        }


def read_bars(kind: str) -> dict[str, Bar]:
    """The bars of a kind, by the names of their rows; a name that ends in * stands for all that begin so."""
    tree = yaml.safe_load((Path(__file__).parent / "bars.yaml").read_text(encoding="utf-8"))
    return {name: Bar(**entry) for name, entry in tree.get(kind, {}).items()}


def bar_of(bars: Mapping[str, Bar], name: str) -> Bar | None:
    group = next((key for key in bars if key.endswith("*") and name.startswith(key[:-1])), "")
    return bars.get(name) or bars.get(group)


def ratios(others: Sequence[float], ours: Sequence[float]) -> tuple[float, ...]:
    """The other's time over ours, round by round: what slows the machine slows both."""
    return tuple(other / our for other, our in zip(others, ours, strict=True))


def show(document: Mapping[str, Any], rows: Sequence[Row], as_json: bool) -> None:
    """Print a JSON document on stdout, or a table."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 240
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, side in (("what", "left"), ("median", "right"), ("range", "right"), ("rounds", "right"), ("bar", "left")):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    table.add_column("")
    for row in rows:
        low, high = figure(min(row.values)), figure(max(row.values))
        spread = f"{low} to {high}" if len(row.values) > 1 else ""
        style = {"pass": "green", "falls short": "yellow"}.get(row.verdict or "", "")
        cells = (row.what, f"{figure(row.median)} {row.unit}", spread, str(len(row.values)))
        bar = row.bar.text() if row.bar else ""
        table.add_row(*map(Text, cells), Text(bar), Text(row.verdict or "", style))
    console.print(table)
    for note in document["notes"]:
        console.print(Text(note), soft_wrap=True)
    facts = ", ".join(f"{name} {value}" for name, value in document["versions"].items() if value)
    console.print(Text(f"{document['device']}, {document['threads']} threads; {facts}", "dim"), soft_wrap=True)


def figure(value: float) -> str:
    """Three digits, more where the number before the point has more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
