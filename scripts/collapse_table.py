"""The second table of docs/cpu.md: catastrophic overfitting of plain FGSM training, and methods that are to prevent it.

    python -m scripts.collapse_table                         train what is missing, then write the table
    python -m scripts.collapse_table --methods fgsm_at       a part of it
    python -m scripts.collapse_table --write                 from the runs that are there, train nothing

Data and runs are as in `scripts.cpu_table`; the whole test split is attacked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.cpu_table import BEST, DOCUMENT, LAST
from scripts.table_runs import done, markdown_table, percent, read_metrics, replace_section, train

#: Methods under `experiment=cpu_collapse`, and what they need besides.
METHODS: Mapping[str, Sequence[str]] = {
    "fgsm_at": ["method.clean=0"],
    "n_fgsm": [],
    "fast_at": [],
    "kim_interval": [],
    "grad_align": [],
    "pgd_at": ["attack=pgd_7"],
}
SEEDS = (0, 1)
BEGIN = "<!-- collapse, written by a script -->"
HEAD = ["method", "seed", "clean %", "FGSM %", "PGD-20 %", "PGD-20 %, best epoch", "collapse named at step", "seconds"]


def measure(home: Path, name: str, seed: int, data_dir: Path) -> str:
    """Train and evaluate a method with one seed, unless that is done. Returns what to tell."""
    words = ["experiment=cpu_collapse", f"method={name}", *METHODS[name], f"seed={seed}", f"data_dir={data_dir}"]
    told = "is there" if done(home, LAST) else train(home, [*words, "logger=none"], ["eval.examples=false"])
    return f"{name} seed {seed}: {told}"


def cells(run: Path) -> list[str]:
    """The figures of a row, in the order of HEAD."""
    last, best = (json.loads((run / name).read_text()) for name in (LAST, BEST))
    fgsm = next(attack for attack in last["attacks"] if attack["name"] == "fgsm")
    watch = read_metrics(run, "watch")
    steps = [
        f"{row['step']} ({100 * row['highest']:.0f} → {100 * row['pgd']:.0f})" for row in watch if "collapse" in row
    ]
    return [
        *(percent(part) for part in (last["clean"], fgsm["alone"], last["steps"][-1])),
        f"{100 * best['steps'][-1]['accuracy']:.1f}",
        ", ".join(steps) or ("none" if watch else "not watched"),
        f"{json.loads((run / 'status.json').read_text())['train_seconds']:.0f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/cpu_collapse"), help="where the runs lie")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, as a,b")
    parser.add_argument("--write", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    wanted = args.methods.split(",")
    if unknown := sorted({*wanted} - {*METHODS}):
        parser.error(f"--methods: there is no {', '.join(unknown)}")
    homes = {(name, seed): args.runs / f"{name}-s{seed}" for name in METHODS for seed in SEEDS}
    for name, seed in sorted(homes, key=lambda pair: pair[1]):
        if name in wanted and not args.write:
            print(measure(homes[name, seed], name, seed, args.data_dir), flush=True)
    found = [(name, seed, run) for (name, seed), home in homes.items() if (run := done(home, LAST))]
    rows = ([" ".join([f"`{name}`", *METHODS[name]]), str(seed), *cells(run)] for name, seed, run in found)
    replace_section(DOCUMENT, markdown_table(HEAD, rows), BEGIN)


if __name__ == "__main__":
    main()
