"""Off a terminal: plain lines, one an epoch, no control codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from atbench.reporting import Progress, print_facts, print_summary
from atbench.reporting.console import epoch_line

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


def test_one_plain_line_an_epoch() -> None:
    console = plain()
    with Progress(100, 20, console=console, label="stage member0") as progress:
        for _ in range(50):
            progress.advance(1, examples=128)
        progress.epoch(ROW)
        progress.epoch({"epoch": 4, "epochs": 20, "train": {}, "val": {}})
        progress.note("kept [best]")
    assert text(console) == (
        "stage member0  epoch 3/20  loss 0.91  train 61.0 %  val clean 95.0 %  val PGD-10 64.0 %  gap 7.0  "
        "980 img/s  attack 71 %\n"
        "stage member0  epoch 4/20\nkept [best]\n"
    )


def test_the_stage_of_a_curriculum_is_shown() -> None:
    train = {"loss": 1.0, "accuracy": 0.5, "fosc_threshold": 0.125, "tau": 2.0}
    line = epoch_line({"epoch": 1, "epochs": 2, "train": train})
    assert line == "epoch 1/2  loss 1  train 50.0 %  tau 2  fosc threshold 0.125"


def test_other_ranks_are_silent() -> None:
    console = plain()
    with Progress(100, 20, draw=False, console=console) as progress:
        progress.advance(1, examples=128)
        progress.epoch(ROW)
        progress.note("x")
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
