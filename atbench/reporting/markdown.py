"""Document as Markdown: pipe tables, pictures by relative path."""

from __future__ import annotations

import re
from html import escape

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from atbench.reporting.document import Document, kind
from atbench.reporting.html import TEMPLATES

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_BREAK = re.compile(r"[\n\r\v\f\x85\u2028\u2029]")


def render_markdown(document: Document) -> str:
    """The whole document, one blank line between blocks."""
    block = getattr(_TEMPLATES.get_template("blocks.md.jinja").module, "block")  # noqa: B009
    parts = [f"# {_plain(document.title)}", *(str(block(each)).strip("\n") for each in document.blocks)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Escaped text; tags become entities, as not every renderer takes a backslash there."""
    return _BREAK.sub(" ", _SPECIAL.sub(r"\\\1", escape(text, quote=False)))


def _fence(text: str) -> str:
    """A code fence longer than any run of backticks in the text."""
    return "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)


_TEMPLATES = Environment(  # noqa: S701: `plain` is its escape
    loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {"kind": kind, "plain": _plain, "fence": _fence}
