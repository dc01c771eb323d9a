"""The table of the recipe ladder in docs/reproduction.md, from `results/<tier>/ladder/`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import t

from atbench.reporting.reproduction import TIERS, Figure, Result, read_result
from scripts.repro_results import REPOSITORY, RESULTS
from scripts.repro_rows import ladder
from scripts.table_runs import markdown_table, replace_section

PAGE = REPOSITORY / "docs" / "reproduction.md"
BEGIN = "<!-- ladder, written by a script -->"
NOT_RUN = "not run"
HEAD = ("rung", "clean %", "PGD-20 %", "AutoAttack %", "PGD-20 to the rung before", "best − last", "seconds")


def write_ladder(document: Path = PAGE, folder: Path = RESULTS) -> None:
    """Write the page's section from the results."""
    replace_section(document, section(folder), BEGIN)


def section(folder: Path) -> str:
    """A table for each tier: the rungs of PGD-AT, then those of TRADES."""
    parts = list[str]()
    for tier in TIERS:
        results = {row.key: _result(folder / tier / "ladder" / f"{row.key}.json") for row in ladder(tier)}
        found = [each for each in results.values() if each]
        table = _table(results) if found else f"Not run; `make repro-ladder TIER={tier}` makes it."
        parts += [f"### `{tier}`", *_told(found), table]
    return "\n\n".join(parts)


def _result(path: Path) -> Result | None:
    return read_result(path) if path.is_file() else None


def _told(results: Sequence[Result]) -> list[str]:
    """A line of what all rows have in common: seeds, images, setting, device. None where they differ."""
    told = {
        f"{len(each.seeds)} seed{'s' if each.seeds[1:] else ''}; {each.pgd.n:,} test images"
        f"{_attacked(each.autoattack)}; {each.record['note']}; {each.record['device']}."
        for each in results
    }
    return [*told] if len(told) == 1 else []


def _attacked(autoattack: Figure | None) -> str:
    if autoattack is None:
        return ""
    return f", AutoAttack on {autoattack.n:,} of them with {len(autoattack.values)}"


def _table(results: dict[str, Result | None]) -> str:
    rows, before = [], None
    for key, result in results.items():
        if key.endswith("-raw_last"):
            before = None
        rows.append([f"`{key}`", *(_cells(result, before) if result else [NOT_RUN] * (len(HEAD) - 1))])
        before = result
    return markdown_table(HEAD, rows)


def _cells(result: Result, before: Result | None) -> list[str]:
    seeds = result.record["seeds"]
    ends = [seed.get("checkpoints", {}) for seed in seeds]
    gaps = [end["best"] - end["last"] for end in ends if {"best", "last"} <= end.keys()]
    return [
        result.clean.text,
        result.pgd.text,
        result.autoattack.text if result.autoattack else NOT_RUN,
        _difference(result, before) if before else "",
        f"{100 * statistics.fmean(gaps):+.1f}" if gaps else "",
        f"{statistics.fmean(seed['train_seconds'] for seed in seeds):.0f}",
    ]


def _difference(result: Result, before: Result) -> str:
    """Points more than the rung before: the mean over seeds, and its 95 % interval (Student's t) over their pairs."""
    of_seed = dict(zip(before.seeds, before.pgd.values, strict=True))
    pairs = zip(result.seeds, result.pgd.values, strict=True)
    points = [100 * (value - of_seed[seed]) for seed, value in pairs if seed in of_seed]
    if not points:
        return ""
    mean = statistics.fmean(points)
    if len(points) == 1:
        return f"{mean:+.1f}"
    half = float(t.ppf(0.975, len(points) - 1)) * statistics.stdev(points) / math.sqrt(len(points))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
