"""Accuracies under unforeseen distortions, UAR and mUAR, as blocks of a report and lines of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table as TerminalTable

from atbench.reporting.document import Block, Cell, Heading, Paragraph, table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import NOTHING, accuracy_text, interval, percent


def unforeseen_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """A table attack × size, and one of UAR; empty where nothing of the kind was evaluated."""
    found = [(each.checkpoint, each.record["unforeseen"]) for each in evaluations if each.record.get("unforeseen")]
    if not found:
        return
    yield Heading("Unforeseen distortions", part=True)
    yield Paragraph(
        "Each attack searches the parameters of a distortion of size ε, towards a random wrong class; accuracy on all "
        "images, right without an attack and under it. ATA: the best accuracy of networks trained against that attack "
        "(Kang et al. 2019). UAR: accuracy over ATA, each summed over the sizes; above 100 means ahead of those. "
        + " ".join(f"{unforeseen_line(checkpoint, unforeseen)}." for checkpoint, unforeseen in found)
    )
    rows = [
        (checkpoint, attack["name"], attack["unit"], Cell(f"{entry['eps']:g}", entry["eps"]), _accuracy(entry),
         percent(entry["ata"]))
        for checkpoint, unforeseen in found
        for attack in unforeseen["attacks"]
        for entry in attack["sizes"]
    ]  # fmt: skip
    yield table(("checkpoint", "attack", "ε in", "ε", "accuracy", "ATA"), rows, "unforeseen")
    means = [
        (checkpoint, attack["name"], _accuracy(attack["mean"]), _uar_cell(attack["uar"]))
        for checkpoint, unforeseen in found
        for attack in unforeseen["attacks"]
    ]
    yield table(("checkpoint", "attack", "mean accuracy over the sizes", "UAR"), means, "uar")


def unforeseen_line(checkpoint: str, unforeseen: Mapping[str, Any]) -> str:
    """`best: mUAR 31.2 [29.0, 33.4] of 6 attacks, n = 500`, and what stands against comparing it."""
    note = f" ({unforeseen['note']})" if unforeseen["note"] else ""
    count = len(unforeseen["attacks"])
    return f"{checkpoint}: mUAR {uar_text(unforeseen['muar'])} of {count} attacks, n = {unforeseen['n']:,}{note}"


def distortion_table(unforeseen: Mapping[str, Any]) -> TerminalTable:
    """Accuracies by attack (row) and size (column), and UAR."""
    width = max(len(attack["sizes"]) for attack in unforeseen["attacks"])
    heads = ("attack", *(f"ε{number + 1}" for number in range(width)), "UAR")
    grid = TerminalTable(*heads, box=None, header_style="dim", pad_edge=False)
    for attack in unforeseen["attacks"]:
        cells = (f"{percent(entry['accuracy'])} ({entry['eps']:g})" for entry in attack["sizes"])
        grid.add_row(attack["name"], *cells, uar_text(attack["uar"]))
    return grid


def uar_text(uar: Mapping[str, float] | None) -> str:
    """`31.2 [29.0, 33.4]`, in hundredths as in the paper; a dash where it is not defined."""
    return NOTHING if uar is None else f"{100 * uar['uar']:.1f} {interval(uar['low'], uar['high'])}"


def _uar_cell(uar: Mapping[str, float] | None) -> Cell:
    return Cell(uar_text(uar), None if uar is None else uar["uar"])


def _accuracy(entry: Mapping[str, Any]) -> Cell:
    return Cell(accuracy_text(entry), entry["accuracy"])
