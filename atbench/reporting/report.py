"""The verb `report`: the report of one run, or a comparison of several, read from run folders."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from atbench.errors import ConfigError, DataError
from atbench.reporting import comparison_report, html, markdown, run_report
from atbench.reporting.comparison import compare
from atbench.reporting.comparison_json import comparison_as_json as comparison_json
from atbench.reporting.console import print_line, print_summary, print_table
from atbench.reporting.document import Document
from atbench.reporting.run_facts import threat_text
from atbench.reporting.run_folder import RunFolder, find_runs, read_run, runs_below
from atbench.reporting.table_files import write_tables
from atbench.runs.run_dir import list_records, refuse_links, write_bytes, write_text


def write_report(run: Path, every_format: bool = True) -> None:
    """Write report.md, report.html, tables/ and pictures/ into a run folder, over what is there.

    Without `every_format` the figures have the page's format alone: PDF and PNG of a page take two thirds of the time.
    """
    refuse_links(run)
    _publish(run_report.build_run_report(_evaluated(run)), run, every_format)


def report_runs(runs: list[Path], out: Path | None, as_json: bool, baseline: str | None = None) -> int:
    """One run: write its report and print its figures. Several, or `out` given: a comparison on stdout and in `out`.

    Without `out` the comparison goes to `report` in the folder that the runs share. `as_json`: the comparison as JSON
    on stdout, and no files. baseline: the method, or the row's label, that the others are held against.
    """
    folders = find_runs(runs)
    if as_json:
        json.dump(comparison_json(compare(folders)), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif len(folders) == 1 and out is None:
        _one(folders[0])
    else:
        _several(folders, out or comparison_report.default_folder(folders), runs, baseline)
    return 0


def report_sweep(folder: Path) -> None:
    """The comparison of a sweep's runs, on stdout and in `report` in its folder; nothing if fewer than two were
    evaluated.
    """
    below = runs_below(folder)
    if sum(bool(list_records(path)) for path in below) > 1:
        _several(below, folder / "report", [folder], None)


def _evaluated(path: Path) -> RunFolder:
    run = read_run(path)
    if not run.evaluations:
        fix = "wait for its end" if run.state == "running" else f"finish it with `atbench train resume={path}`"
        raise DataError("run", path, f"it has no evaluation yet ({run.status_line})", fix)
    return run


def _one(folder: Path) -> None:
    run = _evaluated(folder)
    write_report(folder)
    console = Console()
    print_line(f"{run.name('method')} on {run.name('dataset')}, {threat_text(run)}, seed {run.seed}", console)
    print_summary([dict(evaluation.record) for evaluation in run.evaluations.values()], folder, [], console)


def _several(folders: Sequence[Path], out: Path, named: Sequence[Path], baseline: str | None) -> None:
    comparison = compare(folders)
    rivals = [row for row in comparison.rows if row.counted]
    if baseline is not None and not any(comparison.baseline(row, baseline) for row in rivals):
        known = ", ".join(dict.fromkeys(row.label for row in rivals))
        raise ConfigError(
            "--baseline", baseline, "it is not exactly one row of the comparison", f"name one of: {known}"
        )
    baseline = baseline or comparison_report.BASELINE
    title = f"{len(folders)} runs compared"
    words = ["atbench", "report", *map(str, named), "--out", str(out), "--baseline", baseline]
    _publish(comparison_report.build_comparison_report(comparison, title, baseline, shlex.join(words)), out)
    console = Console()
    print_table(comparison_report.terminal_table(comparison, baseline), console)
    for notice in comparison_report.comparison_notices(comparison):
        print_line(notice, console)
    print_line(Text.assemble(("report  ", "dim"), str(out / "report.html")), console)


def _publish(document: Document, folder: Path, every_format: bool = True) -> None:
    """Write figures and tables as files of their own, then the document as Markdown and HTML."""
    for figure in document.figures:
        written = figure.formats(every_format)
        for suffix in figure.drawing.formats:
            path = folder / "pictures" / f"{figure.name}.{suffix}"
            if suffix in written:
                write_bytes(path, figure.drawing.file(suffix))
            else:
                path.unlink(missing_ok=True)  # of an earlier report, on other results
    write_tables(document, folder)
    write_text(folder / "report.md", markdown.render_markdown(document))
    write_text(folder / "report.html", html.render_html(document, every_format))
