"""Off a terminal: plain lines, one an epoch, no control codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from atbench.reporting import Progress, print_facts, print_summary

ROW = {
    "event": "epoch", "epoch": 3, "epochs": 20, "step": 54, "examples_per_second": 980.0, "attack_share": 0.71,
    "train": {"loss": 0.91, "accuracy": 0.61}, "val": {"clean": 0.95, "pgd": 0.64, "n": 150, "k": 10}, "gap": 0.07,
}  # fmt: skip


def plain() -> Console:
    # What FORCE_COLOR=1 in a pipe looks like: rich believes in a terminal, the file is none.
    return Console(file=io.StringIO(), force_terminal=True, width=60)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


COLLAPSE = {
    **{"event": "watch", "epoch": 5, "step": 300, "fgsm": 0.9141, "pgd": 0.0156},
    **{"highest": 0.625, "k": 10, "n": 128, "collapse": "warn"},
}


def test_one_plain_line_an_epoch() -> None:
    console = plain()
    with Progress(100, 20, console=console, label="stage member0") as progress:
        for _ in range(50):
            progress.advance(1, examples=128)
        progress.epoch(ROW)
        progress.epoch({"epoch": 4, "epochs": 20, "train": {}, "val": {}})
        progress.epoch({"epoch": 5, "epochs": 20, "method": {"strength": 3, "eps_mean": 0.03125}, "attack_share": 0.5})
        progress.watched(COLLAPSE)
        progress.watched({**COLLAPSE, "collapse": "rollback"})
        progress.watched({"event": "watch", "fgsm": 0.5, "pgd": 0.4})
    assert text(console) == (
        "stage member0  epoch 3/20  loss 0.91  train 61.0 %  val clean 95.0 %  val PGD-10 64.0 %  gap 7.0  "
        "980 img/s  attack 71 %\n"
        "stage member0  epoch 4/20\nstage member0  epoch 5/20  strength 3  eps_mean 0.0312  attack 50 %\n"
        "warning: catastrophic overfitting at step 300 (epoch 5): FGSM 91.4 %, PGD-10 1.6 % (highest so far 62.5 %) on "
        "128 held-out examples; training went on (guard.collapse=stop or rollback would not)\n"
        "warning: catastrophic overfitting at step 300 (epoch 5): FGSM 91.4 %, PGD-10 1.6 % (highest so far 62.5 %) on "
        "128 held-out examples; training went back to the last healthy measurement\n"
    )


def test_other_ranks_are_silent() -> None:
    console = plain()
    with Progress(100, 20, draw=False, console=console) as progress:
        progress.advance(1, examples=128)
        progress.epoch(ROW)
        progress.watched(COLLAPSE)
    assert text(console) == ""


def test_echo_keeps_folders_whole() -> None:
    console = Console(file=io.StringIO(), width=40)
    print_facts([("data", "digits"), ("folder", "/a" * 60)], console)
    assert text(console) == f"data    digits\nfolder  {'/a' * 60}\n"


def test_summary_shows_the_record(make_run) -> None:
    run = make_run(evaluated={"warnings": ("small",)})
    records = [json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("best", "last")]
    console = Console(file=io.StringIO(), width=40)
    print_summary(records, run, ["atbench report x", "atbench eval y"], console)
    out = text(console)
    for record in records:
        shown = [record["clean"], *(step for step in record["steps"] if step["k"] in (20, 50))]
        line = next(x for x in out.split("\n") if x.startswith(record["checkpoint"]))
        for entry in shown:
            words = f"{100 * entry['accuracy']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
            assert words in line
        assert line.split()[1] == str(record["epoch"]) and line.split()[-1] == "60"
    assert "upper bound: PGD-50 only" in out and "warning: small" in out and str(Path(run)) in out
    assert "next    atbench report x\n        atbench eval y\n" in out
