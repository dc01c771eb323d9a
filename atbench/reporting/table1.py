"""`atbench report table1`: the survey's Table 1 (Bai et al. 2021), what is known of each cell, and what we measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atbench.config import registry
from atbench.reporting.document import Cell, Document, Heading, Notice, Paragraph, Table, table
from atbench.reporting.html import render_html
from atbench.reporting.markdown import render_markdown
from atbench.reporting.reproduction import TIERS, Band, Result, band, read_results
from atbench.reporting.table_files import write_tables
from atbench.reporting.wording import NOTHING
from atbench.runs.run_dir import write_json, write_text

FOLDER = "experiment/table1"
NOT_RUN = "not run"
COLUMNS = (
    "row", "method", "survey", "verdict", "what was really run", "peer", "ours: clean %", "PGD %", "AutoAttack %",
    "images", "gap to AutoAttack", "band", "what the tier changed",
)  # fmt: skip
SMOKE = (
    "No band applies: these are networks for MNIST at 14×14, whose accuracies do not compare with CIFAR-10's. They "
    "compare with each other."
)
BANDS = (
    "Where a peer's figure has the setting of this tier, ours must lie within its mean ± max(1.5 points, 3 standard "
    "deviations) under AutoAttack."
)
READING = (
    "Rows stand in the survey's order. Its figures have different radii, data sets, networks and attacks, and do not "
    "compare with each other. Accuracies are in percent; brackets are 95 % intervals. The gap is accuracy under PGD "
    "minus that under AutoAttack on the same images, in points."
)


@dataclass(frozen=True)
class SurveyRow:
    """A row of the survey's Table 1: the cell as printed, the audit's verdict and what was really run."""

    key: str
    survey: Mapping[str, Any]

    @property
    def cell(self) -> str:
        cell = self.survey
        return f"{cell['accuracy']:.2f} %: {cell['attack']}, {cell['eps']}, {cell['model']}, {cell['dataset']}"

    @property
    def peer(self) -> Mapping[str, Any] | None:
        return self.survey.get("peer")

    @property
    def peer_text(self) -> str:
        return f"{self.peer['accuracy']} %: {self.peer['attack']}, {self.peer['of']}" if self.peer else NOTHING


def survey_rows(folder: Path | None = None) -> list[SurveyRow]:
    """The rows in the survey's order, from the experiments in `folder` (ours)."""
    paths = sorted((folder or registry.conf_dir() / FOLDER).glob("*.yaml"))
    rows = [SurveyRow(path.stem, registry.read_option(path)["experiment"]["survey"]) for path in paths]
    return sorted(rows, key=lambda row: int(row.survey["row"]))


def report_table1(results: Path, tier: str | None, out: Path | None, as_json: bool) -> int:
    """Print the table as Markdown, or as JSON; with `out`, write both there, and HTML, CSV and LaTeX. tier: one alone,
    else all that have results.
    """
    found = read_results(results, [tier] if tier else TIERS)
    shown = {name: rows for name, rows in found.items() if rows or tier} or {"smoke": {}}
    survey = survey_rows()
    content = table1_json(survey, shown)
    document = table1_document(survey, shown)
    text = render_markdown(document)
    if out is not None:
        write_text(out / "table1.md", text)
        write_text(out / "table1.html", render_html(document))
        write_tables(document, out)
        write_json(out / "table1.json", content)
    print(json.dumps(content, indent=2, ensure_ascii=False) if as_json else text, end="\n" if as_json else "")
    sys.stdout.flush()
    return 0


def table1_document(survey: Sequence[SurveyRow], found: Mapping[str, Mapping[str, Result]]) -> Document:
    """A section with a table for each tier."""
    sections = [
        (Heading(f"tier={tier}"), Notice(SMOKE if tier == "smoke" else BANDS), _table(survey, results, tier))
        for tier, results in found.items()
    ]
    return Document("Table 1 of the survey, remade", (Paragraph(READING), *(b for blocks in sections for b in blocks)))


def _table(survey: Sequence[SurveyRow], results: Mapping[str, Result], tier: str) -> Table:
    return table(COLUMNS, ([*_known(row), *_ours(row, results.get(row.key))] for row in survey), f"table1-{tier}")


def _known(row: SurveyRow) -> list[Cell | str]:
    """What is known of a cell, whoever measured it."""
    return [
        Cell(str(row.survey["row"]), row.survey["row"]),
        row.key,
        row.cell,
        row.survey["verdict"],
        row.survey["corrected"],
        row.peer_text,
    ]


def _ours(row: SurveyRow, result: Result | None) -> list[str]:
    """What we measured; a row without a result is marked so in each column of figures."""
    if result is None:
        return [NOT_RUN] * 4 + [NOTHING] * 3
    autoattack = result.autoattack
    images = f"{result.pgd.n:,}" + (f"; AutoAttack {autoattack.n:,}" if autoattack else "")
    gap = NOTHING if result.gap is None else f"{100 * result.gap:.1f}"
    return [
        result.clean.text,
        f"{result.pgd.name}: {result.pgd.text}",
        autoattack.text if autoattack else NOT_RUN,
        f"{images}; seeds {', '.join(map(str, result.seeds))}; {result.selected}",
        f"{gap}, {result.gap_reason}" if result.gap_reason else gap,
        _band_text(band(result, row.peer)),
        result.record["note"] or NOTHING,
    ]


def _band_text(found: Band | None) -> str:
    return NOTHING if found is None else found.text


def table1_json(survey: Sequence[SurveyRow], found: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
    """The same as JSON: our accuracies in [0, 1], the survey's and the peers' in percent as printed."""
    rows = []
    for row in survey:
        ours = {tier: _ours_json(row, results.get(row.key)) for tier, results in found.items()}
        rows.append({"row": row.key, "survey": dict(row.survey), "ours": ours})
    return {"schema": 1, "rows": rows}


def _ours_json(row: SurveyRow, result: Result | None) -> dict[str, Any] | None:
    """Null for a row that was not run."""
    if result is None:
        return None
    limits = band(result, row.peer)
    return {
        "clean": result.clean.as_json(),
        "pgd": result.pgd.as_json(),
        "autoattack": result.autoattack.as_json() if result.autoattack else None,
        "gap": result.gap,
        "gap_reason": result.gap_reason or None,
        "band": {"peer": limits.peer, "width": limits.width, "holds": limits.holds} if limits else None,
        "seeds": result.seeds,
        "selected": result.selected,
        "note": result.record["note"] or None,
        "device": result.record["device"],
        "command": result.record["command"],
    }
