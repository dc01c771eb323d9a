"""Transfer between the members of an ensemble, as blocks of a report and a table of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table as TerminalTable

from atbench.reporting import example_grid
from atbench.reporting.document import Block, Cell, Figure, Heading, Paragraph, Table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import accuracy_text, norm_name, short_eps


def transfer_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """A table member × member of each checkpoint; empty where no ensemble was evaluated so."""
    found = [(each.checkpoint, each.record["members"]) for each in evaluations if each.record.get("members")]
    if not found:
        return
    yield Heading("Transfer between members", part=True)
    yield Paragraph(
        "PGD on one member (row), the last iterates judged by every member (column): its accuracy on the images that "
        "all members classify right without an attack. On the diagonal a member is attacked white box; elsewhere "
        "1 − accuracy is the success rate of the transfer. All other figures are of the ensemble as one network. "
        + " ".join(f"{checkpoint}: {transfer_attack(members)}." for checkpoint, members in found)
    )
    rows = [
        (Cell(checkpoint), Cell(f"member {number}", number), *(_cell(entry) for entry in row))
        for checkpoint, members in found
        for number, row in enumerate(members["robust"])
    ]
    width = max(len(members["robust"]) for _, members in found)
    if rows:
        columns = ("checkpoint", "attacked", *(f"member {number}" for number in range(width)))
        yield Table(columns, tuple(rows), "members")
    for each in evaluations:
        yield from transfer_figure(each, f"members-{each.path.stem}", f"Checkpoint {each.checkpoint}")


def transfer_figure(evaluation: EvaluationRecord, name: str, of: str) -> Iterator[Figure]:
    """The matrix as a picture; none where no ensemble was evaluated so."""
    members = evaluation.record.get("members")
    if members and members["n"]:
        accuracy = np.array([[entry["accuracy"] for entry in row] for row in members["robust"]])
        what = "accuracy of each member, %, under the attack on the member of the row"
        drawing = example_grid.draw_transfer(name, accuracy)
        yield Figure(name, drawing, f"{of}: {what}: {transfer_attack(members)}.")


def transfer_attack(members: Mapping[str, Any]) -> str:
    """The attack on a member and the number of images: `PGD-100 (L∞, ε = 8/255), n = 423`."""
    if not members["n"]:
        return "no image is classified right by all members"
    attack = members["attack"]
    objective = "" if attack["objective"] == "ce" else f", objective {attack['objective']}"
    ball = f"{norm_name(attack['norm'])}, ε = {short_eps(attack['eps'])}"
    return f"PGD-{attack['steps']} ({ball}{objective}), n = {members['n']:,}"


def terminal_table(members: Mapping[str, Any]) -> TerminalTable:
    """The matrix: accuracy of each member (column) under the attack on one of them (row)."""
    rows = members["robust"]
    heads = ["attacked", *(f"member {number}" for number in range(len(rows)))]
    table = TerminalTable(*heads, box=None, header_style="dim", pad_edge=False)
    for number, row in enumerate(rows):
        table.add_row(f"member {number}", *(accuracy_text(entry) for entry in row))
    return table


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(accuracy_text(entry), entry["accuracy"])
