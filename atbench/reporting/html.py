"""Document as one self-contained HTML file, in light and dark and on paper, without outside requests."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from atbench.reporting.document import Document, kind

TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document, every_format: bool = True) -> str:
    """`every_format`: whether there are files of the figures in every format to link to, or in the page's own alone."""
    return _TEMPLATES.get_template("page.html.jinja").render(document=document, every_format=every_format)


def _titled(svg: str, name: str, title: str) -> Markup:
    """A drawing as an image with a title, for those who hear a page."""
    head = f'<svg role="img" aria-labelledby="{escape(name)}-title"'
    inside = f'><title id="{escape(name)}-title">{escape(title)}</title>'
    return Markup(re.sub(r"^<svg( [^>]*)>", lambda found: head + found[1] + inside, svg))


_TEMPLATES = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {"kind": kind, "titled": _titled, "base64": lambda data: base64.b64encode(data).decode()}
