"""Transfer between the members of an ensemble, as blocks of a report and a table of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table as TerminalTable

from atbench.reporting.document import Block, Cell, Heading, Paragraph, Table
from atbench.reporting.results import EvaluationRecord
from atbench.reporting.wording import accuracy_text, norm_name, short_eps


def transfer_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """A table member × member of each checkpoint; empty where no ensemble was evaluated so."""
    found = [(each.checkpoint, each.record["members"]) for each in evaluations if each.record.get("members")]
    if not found:
        return
    yield Heading("Transfer between members", part=True)
    yield Paragraph(
        " ".join(f"{checkpoint}: {transfer_sentence(members)}" for checkpoint, members in found)
        + " On the diagonal a member is attacked white box. Elsewhere a low accuracy means that adversarial images "
        "transfer: 1 − accuracy is the success rate of the transfer. The figures above are of the ensemble as one "
        "network."
    )
    rows = [
        (Cell(checkpoint), Cell(f"member {number}", number), *(_cell(entry) for entry in row))
        for checkpoint, members in found
        for number, row in enumerate(members["robust"])
    ]
    width = max(len(members["robust"]) for _, members in found)
    if rows:
        yield Table(("checkpoint", "attacked", *(f"member {number}" for number in range(width))), tuple(rows))


def transfer_sentence(members: Mapping[str, Any]) -> str:
    """`PGD-100 (L∞, ε = 8/255) on one member (row), accuracy of each (column), n = 423 images that ...`."""
    if not members["n"]:
        return "no image is classified right by all members."
    return (
        f"{transfer_attack(members)} on one member (row), accuracy of each member (column) on its last iterates, "
        f"on the {members['n']:,} images that all members classify right."
    )


def transfer_attack(members: Mapping[str, Any]) -> str:
    """The attack on a member: `PGD-100 (L∞, ε = 8/255)`."""
    attack = members["attack"]
    objective = "" if attack["objective"] == "ce" else f", objective {attack['objective']}"
    return f"PGD-{attack['steps']} ({norm_name(attack['norm'])}, ε = {short_eps(attack['eps'])}{objective})"


def terminal_table(members: Mapping[str, Any]) -> TerminalTable:
    """The matrix with intervals."""
    rows = members["robust"]
    heads = ["attacked", *(f"member {number}" for number in range(len(rows)))]
    table = TerminalTable(*heads, box=None, header_style="dim", pad_edge=False)
    for number, row in enumerate(rows):
        table.add_row(f"member {number}", *(accuracy_text(entry) for entry in row))
    return table


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(accuracy_text(entry), entry["accuracy"])
