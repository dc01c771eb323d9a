"""MkDocs hooks: README, CHANGELOG and CONTRIBUTING as pages, and a generated page for each method."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))
import method_pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods' pages below the table of methods."""
    below = [f"methods/{name}.md" for name in method_pages.names()]
    config.nav = [
        {"Methods": [{"Overview": entry["Methods"]}, *below]}
        if isinstance(entry, dict) and "Methods" in entry
        else entry
        for entry in config.nav or []
    ]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name in method_pages.names():
        files.append(File.generated(config, f"methods/{name}.md", content=method_pages.page(name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of the checkout as links of the site, and methods' names in the two tables as links to their pages."""
    markdown = re.sub(r"\[([^\]]+)\]\((\.\./)?([\w./-]+)(#[\w-]+)?\)", _link, markdown)
    if page.file.src_uri in ("methods.md", "fidelity.md"):
        for name in method_pages.names():
            markdown = markdown.replace(f"\n| `{name}` |", f"\n| [`{name}`](methods/{name}.md) |")
    return markdown


def _link(link: re.Match[str]) -> str:
    """A link between files of the checkout as one of the site; to a file that is no page, its text alone."""
    text, up, target, anchor = link.groups("")
    if target in PAGES:
        return f"[{text}]({PAGES[target]}{anchor})"
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')}{anchor})"
    return text if (ROOT / target).exists() else f"[{text}]({up}{target}{anchor})"
