"""Document as Markdown: pipe tables, pictures by relative path."""

from __future__ import annotations

import re
from html import escape
from urllib.parse import quote

from atbench.reporting.document import Block, Code, Document, Facts, Figure, Heading, Notice, Paragraph, Table

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_BREAK = re.compile(r"[\n\r\v\f\x85\u2028\u2029]")


def render_markdown(document: Document) -> str:
    """The whole document, one blank line between blocks."""
    parts = [f"# {_plain(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Escaped text; tags become entities, as not every renderer takes a backslash there."""
    return _BREAK.sub(" ", _SPECIAL.sub(r"\\\1", escape(text, quote=False)))


def _fence(text: str) -> str:
    """A code fence longer than any run of backticks in the text."""
    return "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)


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
            return f"{_fence(text)}{language}\n{text}\n{_fence(text)}"
        case Figure(name, _, caption):
            return f"![{_plain(caption)}](pictures/{quote(name)}.png)\n\n*{_plain(caption)}*"
