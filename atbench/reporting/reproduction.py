"""Results of the reproduction: `<results>/<tier>/<row>.json`, read into typed values, and the band of a peer's figure.

`scripts/repro.py` writes them; docs/reproduction.md says what they hold.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atbench.errors import DataError, refuse_unknown
from atbench.interval import accuracy_figures
from atbench.runs.run_dir import read_json

#: `smoke` on a CPU, `short` on one GPU in minutes, `paper` as the authors had it.
TIERS = ("smoke", "short", "paper")
#: A difference to AutoAttack, on the same images, that asks for a reason.
WIDE_GAP = 0.08
#: What it means that an attack of AutoAttack found most of what PGD had left.
REASONS = {
    "apgd_ce": "APGD on cross-entropy: PGD had not converged",
    "apgd_t": "APGD on targeted margins: cross-entropy hides directions that break it",
    "fab_t": "FAB: cross-entropy hides directions that break it",
    "square": "Square, which needs no gradient: gradients are masked",
}
BAND, DEVIATIONS = 1.5, 3.0  # points, standard deviations


@dataclass(frozen=True)
class Figure:
    """An accuracy: its mean over seeds, and the 95 % interval of that mean as the accuracy of n images.

    The seeds are attacked on the same images, so that more seeds do not make the interval shorter.
    """

    name: str
    values: tuple[float, ...]
    n: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        figures = accuracy_figures(self.mean * self.n, self.n)
        return figures["low"], figures["high"]

    @property
    def text(self) -> str:
        """`79.3 [78.1, 80.4], seeds 79.2–79.4`, in percent."""
        low, high = self.interval
        text = f"{100 * self.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        return text + (f", seeds {100 * min(self.values):.1f}–{100 * max(self.values):.1f}" if self.values[1:] else "")

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "name": self.name,
            "accuracy": self.mean,
            "low": low,
            "high": high,
            "n": self.n,
            "seeds": [*self.values],
        }


@dataclass(frozen=True)
class Result:
    """One row in one tier. autoattack: of the seeds that it ran on, None if of none."""

    row: str
    method: str
    tier: str
    record: Mapping[str, Any]
    clean: Figure
    pgd: Figure
    autoattack: Figure | None

    @property
    def seeds(self) -> list[int]:
        return [seed["seed"] for seed in self.record["seeds"]]

    @property
    def selected(self) -> str:
        """The checkpoint that was attacked, `best` or `last`."""
        return str(self.record["seeds"][0]["selected"])

    @property
    def gap(self) -> float | None:
        """Accuracy under PGD minus that under AutoAttack on the same images, a mean over the seeds that have both."""
        gaps = [each["pgd"]["accuracy"] - each["accuracy"] for each in self._attacked]
        return statistics.fmean(gaps) if gaps else None

    @property
    def gap_reason(self) -> str:
        """Which attack of AutoAttack found most of a wide gap, and what that means; "" where the gap is not wide."""
        if self.gap is None or self.gap < WIDE_GAP:
            return ""
        found = dict.fromkeys(REASONS, 0.0)
        for each in self._attacked:
            left = each["pgd"]["accuracy"]
            for name, accuracy in each["after"].items():
                found[name], left = found[name] + left - accuracy, accuracy
        most = max(found, key=lambda name: found[name])
        return f"most of it found by {REASONS[most]}"

    @property
    def _attacked(self) -> list[Mapping[str, Any]]:
        return [seed["autoattack"] for seed in self.record["seeds"] if seed["autoattack"]]


@dataclass(frozen=True)
class Band:
    """A peer's accuracy under AutoAttack ± the distance that ours may have from it, and ours, in points."""

    peer: float
    width: float
    ours: float

    @property
    def holds(self) -> bool:
        return abs(self.ours - self.peer) <= self.width + 1e-9

    @property
    def text(self) -> str:
        inside = "inside" if self.holds else f"outside by {abs(self.ours - self.peer) - self.width:.2f} points:"
        return f"{inside} {self.peer:.2f} ± {self.width:.2f}"


def band(result: Result, peer: Mapping[str, Any] | None) -> Band | None:
    """The band of a peer's figure: its mean ± max(1.5 points, 3 standard deviations), under AutoAttack.

    peer: `accuracy` in percent, `attack`, `of`; `tier`, the one that has its setting (none where no tier has); `std` in
    points where it is known. None in `smoke`, in another setting, and where either has no AutoAttack.
    """
    if peer is None or peer["attack"] != "AutoAttack" or result.autoattack is None:
        return None
    if result.tier == "smoke" or result.tier != peer.get("tier"):
        return None
    width = max(BAND, DEVIATIONS * float(peer.get("std") or 0.0))
    return Band(float(peer["accuracy"]), width, 100 * result.autoattack.mean)


def read_results(folder: Path, tiers: Sequence[str] = TIERS) -> dict[str, dict[str, Result]]:
    """Results by tier and row. Raises ConfigError for an unknown tier, DataError for an absent folder and a damaged
    file.
    """
    for tier in tiers:
        refuse_unknown("tier", tier, TIERS, "tier")
    if not folder.is_dir():
        fix = "make some with `make repro-table1`, or name the folder with results=FOLDER"
        raise DataError("results", folder, "there is no such folder", fix)
    found = {tier: [read_result(path) for path in sorted((folder / tier).glob("*.json"))] for tier in tiers}
    return {tier: {result.row: result for result in results} for tier, results in found.items()}


def read_result(path: Path) -> Result:
    """One row's JSON. Raises DataError where it is none."""
    record = read_json(path)
    try:
        if (record["tier"], record["row"]) != (tier_of(path), path.stem):
            raise ValueError(f"of {record['tier']}/{record['row']}")
        seeds = record["seeds"]
        attacked = [seed["autoattack"] for seed in seeds if seed["autoattack"]]
        for figure in attacked:
            _figure([figure["pgd"]])
            dict(figure["after"])
        return Result(
            row=record["row"],
            method=record["method"],
            tier=record["tier"],
            record=record,
            clean=_figure([seed["clean"] for seed in seeds], "clean"),
            pgd=_figure([seed["pgd"] for seed in seeds]),
            autoattack=_figure(attacked, "AutoAttack") if attacked else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, statistics.StatisticsError) as fault:
        fix = "restore it from a copy, or make the row again"
        raise DataError("results", path, f"not the result of a row ({fault!r})", fix) from fault


def tier_of(path: Path) -> str:
    """The tier of a result's file: the folder that it lies in, or the one above of a table of its own."""
    return next((folder.name for folder in path.parents if folder.name in TIERS), "")


def _figure(entries: Sequence[Mapping[str, Any]], name: str = "") -> Figure:
    """One accuracy of several seeds. Raises ValueError where they are not of the same attack and as many images."""
    names, sizes = {name or entry["name"] for entry in entries}, {entry["n"] for entry in entries}
    if len(names) != 1 or len(sizes) != 1:
        raise ValueError(f"seeds under {sorted(names)} on {sorted(sizes)} images")
    values = tuple(float(entry["accuracy"]) for entry in entries)
    if not all(0 <= value <= 1 for value in values) or not min(sizes) > 0:
        raise ValueError(f"accuracies {values} on {min(sizes)} images")
    return Figure(names.pop(), values, int(sizes.pop()))
