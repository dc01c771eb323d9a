"""A table of a report as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from atbench.reporting.document import Document, Table
from atbench.runs.run_dir import write_text

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "∞": r"$\infty$",
    "ε": r"$\varepsilon$", "β": r"$\beta$", "θ": r"$\theta$", "δ": r"$\delta$", "λ": r"$\lambda$", "×": r"$\times$",
    "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$", "—": "--", "–": "--", "‖": r"$\|$", "→": r"$\to$",
    "<": "$<$", ">": "$>$", "|": "$|$", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def write_tables(document: Document, folder: Path) -> None:
    """Every named table of a document, in `tables/` of a folder."""
    for each in document.tables:
        write_text(folder / "tables" / f"{each.name}.csv", table_csv(each))
        write_text(folder / "tables" / f"{each.name}.tex", table_latex(each))


def table_csv(table: Table) -> str:
    """The cells as they are shown; behind a column of figures another, `<name> (value)`, with them in full."""
    figures = [any(row[at].value is not None for row in table.rows) for at in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = ([name, f"{name} (value)"] if full else [name] for name, full in zip(table.columns, figures, strict=True))
    writer.writerow([head for pair in heads for head in pair])
    for row in table.rows:
        cells = ([cell.text, cell.value] if full else [cell.text] for cell, full in zip(row, figures, strict=True))
        writer.writerow([value for pair in cells for value in pair])
    return buffer.getvalue()


def table_latex(table: Table) -> str:
    """A `tabular` with the rules of booktabs, for pdfLaTeX as well."""
    rows = [
        " & ".join(rf"\textbf{{{_escaped(cell.text)}}}" if cell.strong else _escaped(cell.text) for cell in row)
        for row in table.rows
    ]
    heads = " & ".join(_escaped(column) for column in table.columns)
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{'l' * len(table.columns)}}}\n\\toprule\n{heads} \\\\\n"
        + "\\midrule\n"
        + "".join(f"{row} \\\\\n" for row in rows)
        + "\\bottomrule\n\\end{tabular}\n"
    )


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda sign: _LATEX[sign[0]], text)
