"""Document as one self-contained HTML file, in light and dark, without outside requests."""

from __future__ import annotations

import base64
from html import escape

from atbench.reporting.document import Block, Cell, Code, Document, Facts, Figure, Heading, Notice, Paragraph, Table

# With this policy a browser loads nothing that is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --quiet: #626a73; --line: #dde1e6; --paper: #fff; --soft: #f5f6f8;
        --notice: #fff6df; --edge: #d99a00; --alarm: #fdeceb; --red: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --quiet: #98a1ac; --line: #353b44; --paper: #15181d; --soft: #1e2329;
          --notice: #2d2615; --edge: #d99a00; --alarm: #391a18; --red: #e4645c; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.5rem 0 .4rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
table.sortable th { cursor: pointer; color: var(--quiet); font-weight: 600; user-select: none; white-space: nowrap; }
table.sortable td { white-space: nowrap; }
table.sortable td.prose { white-space: normal; min-width: 14rem; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
table.facts th { color: var(--quiet); font-weight: 400; white-space: nowrap; padding-right: 1.6rem; }
table.facts { width: 100%; } table.facts td { width: 100%; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .75rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .9rem; }
.notice { background: var(--notice); border-left: 3px solid var(--edge); padding: .55rem .9rem; margin: .7rem 0; }
.notice.grave { background: var(--alarm); border-left-color: var(--red); font-weight: 600; }
figure { margin: 1.2rem 0; max-width: 62rem; } figure svg { width: 100%; height: auto; } figure img { max-width: 100%; }
figure img { background: #fff; border-radius: 6px; }
figcaption { color: var(--quiet); font-size: .9rem; }
""".strip()

# A click on a column's head sorts by data-v or, without one, by text; a second click reverses.
_SCRIPT = """
for (const head of document.querySelectorAll("table.sortable th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const value = cell => cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  const key = row => value(row.cells[column]);
  const order = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
                                                : (typeof a === "number" ? -1 : 1);
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => way * order(key(a), key(b))));
});
""".strip()

_PROSE_FROM = 40  # characters from which a cell may break into lines


def render_html(document: Document) -> str:
    title = escape(document.title)
    body = "\n".join(_block(block) for block in document.blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n"
        f"<script>\n{_SCRIPT}\n</script>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, part):
            tag = "h3" if part else "h2"
            return f"<{tag}>{escape(text)}</{tag}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Notice(text, grave):
            return f'<p class="notice{" grave" if grave else ""}">{escape(text)}</p>'
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Facts(rows):
            return _facts(rows)
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)


def _facts(rows: tuple[tuple[str, str], ...]) -> str:
    lines = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows]
    return f'<table class="facts">\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    return (
        f'<div class="wide"><table class="sortable">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value!r}"'
    prose = ' class="prose"' if len(cell.text) >= _PROSE_FROM else ""
    return f"<td{value}{prose}>{escape(cell.text)}</td>"


def _figure(figure: Figure) -> str:
    caption = escape(figure.caption)
    if figure.drawing.svg is not None:
        inside = figure.drawing.svg
    else:
        inside = f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(figure.drawing.png).decode()}">'
    return f"<figure>\n{inside}\n<figcaption>{caption}</figcaption>\n</figure>"
