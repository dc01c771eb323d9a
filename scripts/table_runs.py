"""Runs behind the tables of documents: started, gone on with, found again; and the section that a table stands in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by a script -->", "<!-- end -->"


def done(home: Path, record: str = "evaluation/best.json") -> Path | None:
    """The finished run in a folder, if there is one with this record."""
    for path in sorted(home.glob("*/status.json")):
        if json.loads(path.read_text())["state"] == "done" and (path.parent / record).exists():
            return path.parent
    return None


def train(home: Path, words: Sequence[str], evaluation: Sequence[str]) -> str:
    """Train and evaluate, from the beginning or from where it was cut off. Returns what to tell."""
    begun = sorted(home.glob("*/checkpoints/last.pt"))
    run = [f"resume={begun[-1].parents[1]}"] if begun else [f"runs={home}", *words]
    return run_atbench(home, ["train", *run, *evaluation])


def run_atbench(home: Path, words: Sequence[str]) -> str:
    """`atbench WORD ...`, what it prints in `log.txt` of a folder. Returns what to tell."""
    ended = subprocess.run([sys.executable, "-m", "atbench", *words], capture_output=True, text=True)
    home.mkdir(parents=True, exist_ok=True)  # a refusal makes no folder
    (home / "log.txt").write_text(ended.stdout + ended.stderr)
    return "done" if ended.returncode == 0 else f"exit {ended.returncode}, see {home}/log.txt"


def replace_section(document: Path, text: str, begin: str = BEGIN) -> None:
    """Put `text` between two marks of a document, of which the first tells its sections apart."""
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    document.write_text(f"{before}{begin}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def written_rows(document: Path, begin: str = BEGIN) -> dict[str, str]:
    """The rows of a section's table as they stand there, by the name in their first cell: those of runs that lie on
    another machine stay.
    """
    section = document.read_text(encoding="utf-8").partition(begin)[2].partition(END)[0]
    return {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}


def table_row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(table_row(row) for row in (head, ["---"] * len(head), *rows))


def percent(part: Mapping[str, float]) -> str:
    """An accuracy of a record, in percent, with its 95 % interval."""
    return f"{100 * part['accuracy']:.1f} [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"


def read_metrics(run: Path, event: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of one kind: `epoch`, or `watch` for those of the watch for collapses."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["event"] == event]
