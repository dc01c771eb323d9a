"""A document as Markdown that reads well on a code host: pipe tables, pictures by relative path."""

from __future__ import annotations

import re

from atbench.reporting.document import Block, Code, Document, Facts, Figure, Heading, Notice, Paragraph, Table

_SPECIAL = re.compile(r"([\\`*_<>\[\]|])")


def render(document: Document) -> str:
    """The whole document, one blank line between blocks."""
    parts = [f"# {_plain(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that shows as it is: nothing in a formula or a folder name becomes emphasis, a tag or a column."""
    return _SPECIAL.sub(r"\\\1", text).replace("\n", " ")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_row(columns), _row(["---"] * len(columns)), *(_row(row) for row in rows)])


def _block(block: Block) -> str:
    match block:
        case Heading(text, part):
            return f"{'###' if part else '##'} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Notice(text, grave):
            return f"> **{'Warning' if grave else 'Note'}:** {_plain(text)}"
        case Facts(rows):
            return _table(["", ""], [[f"**{_plain(name)}**", _plain(value)] for name, value in rows])
        case Table(columns, rows):
            return _table([_plain(c) for c in columns], [[_plain(cell.text) for cell in row] for row in rows])
        case Code(text, language):
            return f"```{language}\n{text}\n```"
        case Figure(name, _, caption):
            return f"![{_plain(caption)}](pictures/{name}.png)\n\n*{_plain(caption)}*"
