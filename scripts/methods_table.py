"""The tables of docs/methods.md: every method trained on digits, attacked, audited; the same recipe for all.

    python -m scripts.methods_table --seeds 0,1,2 --jobs 2                 train what is missing, then write the tables
    python -m scripts.methods_table --only 'multi_norm_*' --seeds 0        a part of it
    python -m scripts.methods_table --seeds 0,1,2 --write                  from the runs that are there, train nothing

A run that is done is not repeated and one that was cut off goes on, so the script may be stopped and started at will.
A row of the document whose first seed's run is not there stays as it is.
Every method is trained as it stands in conf/method. Shown is the checkpoint that the held-out part of the training data
selected. PGD-20 attacks every seed, AutoAttack, the other norms and the audit the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from atbench.config.registry import conf_dir, entries
from scripts.table_runs import done, replace_section, table_row, train, written_rows
from scripts.training_cost import forward_passes, remembered

TRAIN = ("dataset=digits", "model.width=16", "logger=none", "threads=1")
PGD = ("eval.steps=[20]", "eval.limit=250", "eval.checkpoints=[best]", "eval.examples=false")
#: Only the first seed is attacked by more than PGD-20.
FIRST = ("eval=auto", "eval.norms=[linf,l2,l1]", "eval.audit=50")
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def measure(home: Path, name: str, seed: int, first: bool) -> str:
    """A method with one seed, unless that is done. Returns what to tell."""
    evaluation = [*(FIRST if first else ("eval.audit=0",)), *PGD]
    told = "is there" if done(home) else train(home, [f"method={name}", f"seed={seed}", *TRAIN], evaluation)
    return f"{name} seed {seed}: {told}"


def counted(name: str) -> dict[str, float]:
    """The cost of a method's training."""
    return {"forward_passes": forward_passes([f"method={name}", *TRAIN])}


def spread(values: Sequence[float]) -> str:
    """Mean of the seeds, in percent, and their range."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f}–{100 * max(values):.1f})"


def line(entry: dict[str, Any], records: list[dict[str, Any]], seconds: list[float], passes: float) -> str:
    """One method's row: clean and PGD-20 of every seed, the rest of the first."""
    first = records[0]
    union = first["union"]
    cells = [
        f"`{entry['name']}`",
        entry["family"],
        first["threat"]["norm"],
        spread([record["clean"]["accuracy"] for record in records]),
        spread([record["steps"][-1]["accuracy"] for record in records]),
        *(spread([part["accuracy"]]) for part in (first["robust"], *(union["threats"][n] for n in ("l2", "l1")))),
        spread([union["union"]["accuracy"]]),
        f"{statistics.median(seconds):.0f}",
        f"{passes:.1f}",
        str(len(records)),
        ", ".join(sorted(first["audit"]["flags"])) or "no flag",
    ]
    return table_row(cells)


def table(home: Path, names: list[dict[str, Any]], seeds: list[int]) -> str:
    """The rows of the methods whose first seed is done, or that the document has already."""
    head = ["method", "family", "norm", "clean %", "PGD-20 %", "AutoAttack %", "L2 %", "L1 %", "union %"]
    head += ["seconds", "forward passes", "seeds", "audit"]
    rows, written = [table_row(head), f"|{'---|' * len(head)}"], written_rows(DOCUMENT)
    for entry in names:
        first, *more = (done(home / f"{entry['name']}-s{seed}") for seed in seeds)
        if first:
            found = [first, *(run for run in more if run)]
            records = [json.loads((run / "evaluation/best.json").read_text()) for run in found]
            seconds = [json.loads((run / "status.json").read_text())["train_seconds"] for run in found]
            cost = remembered(home / "cost" / f"{entry['name']}.json", partial(counted, entry["name"]))
            rows.append(line(entry, records, seconds, cost["forward_passes"]))
        elif entry["name"] in written:
            rows.append(written[entry["name"]])
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="where the runs lie")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="*", help="a glob over the methods' names")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--write", action="store_true", help="train nothing")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    known = entries("methods", [conf_dir()])
    wanted = [entry["name"] for entry in known if fnmatch(entry["name"], args.only)]
    if not args.write:
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [(args.runs / f"{name}-s{seed}", name, seed, seed == seeds[0]) for seed in seeds for name in wanted]
            for told in pool.map(lambda job: measure(*job), jobs):
                print(told, flush=True)
    replace_section(DOCUMENT, table(args.runs, known, seeds))


if __name__ == "__main__":
    main()
