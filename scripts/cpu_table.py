"""The first table of docs/cpu.md: every method under `experiment=cpu`, seed 0, attacked by FGSM, PGD-20 and AutoAttack.

    python -m scripts.cpu_table                                        train what is missing, then write the table
    python -m scripts.cpu_table --methods pgd_at,trades                a part of it
    python -m scripts.cpu_table --write                                from the runs that are there, train nothing

MNIST has to lie where `dataset=mnist` looks for it (`--data-dir`), or is fetched. A run that is done is not repeated
and one that was cut off goes on, in its AutoAttack as well. A row of the document whose run is not there stays as it
is. Shown is the last checkpoint: overfitting is not selected away.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from atbench.config.registry import conf_dir, entries
from atbench.config.tree import walk
from scripts.table_runs import (
    done,
    markdown_table,
    percent,
    replace_section,
    run_atbench,
    table_row,
    train,
    written_rows,
)

PGD = ("eval.limit=5000", "eval.examples=false")
AUTO = (
    "eval=auto",
    "eval.steps=[20]",
    "eval.audit=0",
    "eval.limit=500",
    "eval.checkpoints=[last]",
    "eval.examples=false",
)
LAST, BEST, AUTO_LAST = "evaluation/last.json", "evaluation/best.json", "evaluation/auto-n500/last.json"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "cpu.md"
#: The section of methods whose PGD-20 accuracy AutoAttack lowers by GAP or more, and where it stands.
GAP, GAPS, GAPS_DOCUMENT = 0.1, "<!-- gaps, written by a script -->", DOCUMENT.with_name("methods.md")


def overrides(name: str) -> list[str]:
    """The words of a row's training."""
    return ["experiment=cpu", f"method={name}"]


def changed(name: str) -> list[str]:
    """What `conf/tuned` sets for a method on these images, and why: one line, or none."""
    file = conf_dir() / "tuned" / f"mnist14_{name}.yaml"
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    words = [f"{key}={value}" for key, value in walk(yaml.safe_load(text)) if not isinstance(value, Mapping)]
    return [f"- `{name}` with `{' '.join(words)}`: {'; '.join(re.findall(r' # (.+)', text))}."]


def measure(home: Path, name: str, data_dir: Path) -> str:
    """One row's training and evaluations, as far as they are not done. Returns what to tell."""
    if done(home, AUTO_LAST):
        return f"{name}: is there"
    told = "done"
    if not done(home, LAST):
        told = train(home, [*overrides(name), "seed=0", f"data_dir={data_dir}", "logger=none"], PGD)
    if run := done(home, LAST):
        told = run_atbench(home, ["eval", str(run), "threads=1", *AUTO])
    return f"{name}: {told}"


def cells(run: Path) -> list[str]:
    """The figures of a row, in the order of HEAD."""
    last, best, auto = (json.loads((run / name).read_text()) for name in (LAST, BEST, AUTO_LAST))
    fgsm = next(attack for attack in last["attacks"] if attack["name"] == "fgsm")
    seconds = json.loads((run / "status.json").read_text())["train_seconds"]
    return [
        last["threat"]["norm"],
        *(percent(part) for part in (last["clean"], fgsm["alone"], last["steps"][-1])),
        f"{100 * best['steps'][-1]['accuracy']:.1f}",
        f"{100 * auto['steps'][-1]['accuracy']:.1f} → {percent(auto['robust'])}",
        f"{seconds:.0f}",
    ]


HEAD = ["method", "family", "norm", "clean %", "FGSM %", "PGD-20 %", "PGD-20 %, best epoch"]
HEAD += ["of 500: PGD-20 → AutoAttack %", "seconds"]


def section(home: Path, methods: Sequence[Mapping[str, Any]]) -> str:
    """The rows whose runs are done or that the document has already, and what was changed for one."""
    rows = written_rows(DOCUMENT)
    for row in methods:
        if run := done(home / row["name"], AUTO_LAST):
            rows[row["name"]] = table_row([f"`{row['name']}`", row["family"], *cells(run)])
    shown = [row["name"] for row in methods if row["name"] in rows]
    lines = [line for name in shown for line in changed(name)]
    return "\n".join(
        [markdown_table(HEAD, ()), *(rows[name] for name in shown), "", "Changed for a method:", "", *lines]
    )


def gaps(home: Path, methods: Sequence[Mapping[str, Any]]) -> str:
    """What each part of AutoAttack leaves of a PGD-20 accuracy, on the same images, where it takes GAP or more."""
    rows = written_rows(GAPS_DOCUMENT, GAPS)
    for row in methods:
        if not (run := done(home / row["name"], AUTO_LAST)):
            continue
        rows.pop(row["name"], None)
        record = json.loads((run / AUTO_LAST).read_text())
        pgd, parts = record["steps"][-1]["accuracy"], record["attacks"]
        lost = pgd - record["robust"]["accuracy"]
        if round(lost, 6) >= GAP:
            left = (f"{100 * part['after']['accuracy']:.1f}" for part in parts[:-1])
            start = [f"`{row['name']}`", row["family"], f"{100 * pgd:.1f}", *left]
            rows[row["name"]] = table_row([*start, percent(record["robust"]), f"{100 * lost:.1f}"])
    head = ["method", "family", "PGD-20 %", "APGD-CE", "APGD-T", "FAB-T", "Square: AutoAttack %", "points lost"]
    return "\n".join([markdown_table(head, ()), *sorted(rows.values(), key=_last_cell, reverse=True)])


def _last_cell(row: str) -> float:
    return float(row.rstrip(" |").rpartition("|")[2])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/cpu"), help="where the runs lie")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies")
    parser.add_argument("--methods", help="some of them, as a,b")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--write", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    methods = entries("methods", [conf_dir()])
    known = [row["name"] for row in methods]
    wanted = args.methods.split(",") if args.methods else known
    if unknown := sorted({*wanted} - {*known}):
        parser.error(f"--methods: there is no {', '.join(unknown)}")
    if not args.write:
        with ThreadPoolExecutor(args.jobs) as pool:
            for told in pool.map(lambda name: measure(args.runs / name, name, args.data_dir), wanted):
                print(told, flush=True)
    replace_section(DOCUMENT, section(args.runs, methods))
    replace_section(GAPS_DOCUMENT, gaps(args.runs, methods), GAPS)


if __name__ == "__main__":
    main()
