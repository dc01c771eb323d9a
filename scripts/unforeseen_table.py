"""The table of "Unforeseen distortions" in docs/evaluation.md: three methods on 500 test images of CIFAR-10.

    python -m scripts.unforeseen_table                       train and evaluate what is missing, then write the table
    python -m scripts.unforeseen_table --print               only the commands
    python -m scripts.unforeseen_table --write               from the records that are there

CIFAR-10 has to lie where `dataset=cifar10` looks for it (`--data-dir`), or is fetched. A run that is done is not
repeated, and one that was cut off goes on, in its evaluation as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.table_runs import done, replace_section, run_atbench, train

METHODS = ("standard", "pgd_at", "trades")
TRAINING = ("dataset=cifar10", "model=strided", "attack=pgd_7", "train.epochs=5", "train.selection.n=500", "threads=1")
TRAINED = ("eval=smoke", "eval.checkpoints=[last]", "eval.examples=false")
UNFORESEEN = ("eval=unforeseen", "eval.limit=500", "eval.checkpoints=[last]")
LAST = "evaluation/last.json"
RECORD = "evaluation/unforeseen-n500/last.json"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"


def words(method: str, data_dir: Path) -> list[str]:
    """The words of a row's training; its evaluation is `eval RUN` with those of UNFORESEEN."""
    return [*TRAINING, f"method={method}", f"data_dir={data_dir}"]


def measure(home: Path, method: str, data_dir: Path) -> str:
    """One row's training and evaluation, as far as they are not done. Returns what to tell."""
    if done(home, RECORD):
        return "done before"
    if done(home, LAST) is None and (told := train(home, words(method, data_dir), TRAINED)) != "done":
        return told
    return run_atbench(home, ["eval", str(done(home, LAST)), *UNFORESEEN])


def table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A row for each method: clean and PGD-20 accuracy, UAR of each attack, mUAR."""
    names = [attack["name"] for attack in records[0][1]["unforeseen"]["attacks"]]
    heads = ["method", "clean", "PGD-20", *(f"UAR {name}" for name in names), "mUAR"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, record in records:
        unforeseen = record["unforeseen"]
        uars = [*(attack["uar"] for attack in unforeseen["attacks"]), unforeseen["muar"]]
        shares = [_share(each, "accuracy") for each in (record["clean"], record["steps"][-1])]
        lines.append(f"| {' | '.join([method, *shares, *(_share(uar, 'uar') for uar in uars)])} |")
    first = records[0][1]["unforeseen"]
    note = f" {first['note']}." if first["note"] else ""
    said = f"n = {first['n']}, {first['steps']} steps, one seed; brackets: 95 % interval.{note}"
    return "\n".join([*lines, "", said])


def _share(entry: dict[str, float], key: str) -> str:
    return f"{100 * entry[key]:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/unforeseen"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--print", action="store_true", dest="only_print")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    for method in METHODS:
        home = given.runs / method
        if given.only_print:
            print(f"atbench train runs={home} {' '.join([*words(method, given.data_dir), *TRAINED])}")
            print(f"atbench eval {home}/RUN {' '.join(UNFORESEEN)}")
        elif not given.write:
            print(f"{method}: {measure(home, method, given.data_dir)}", flush=True)
    found = [(method, run) for method in METHODS if (run := done(given.runs / method, RECORD))]
    if found and not given.only_print:
        replace_section(DOCUMENT, table([(method, json.loads((run / RECORD).read_text())) for method, run in found]))


if __name__ == "__main__":
    main()
