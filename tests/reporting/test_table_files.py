"""Tables as CSV and LaTeX, and the paired test that a comparison gives."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from atbench.errors import ConfigError
from atbench.reporting import report
from atbench.reporting.comparison import compare
from atbench.reporting.comparison_report import comparison_table
from atbench.reporting.document import Cell, table
from atbench.reporting.paired import mcnemar
from atbench.reporting.table_files import table_csv, table_latex


def test_csv_has_the_text_and_the_figure_in_full() -> None:
    shown = table(("a, b", "robust"), [('x "y"', Cell("61.0 % [56.4, 65.4]", 0.6098765)), ("z", Cell("—"))])
    rows = list(csv.reader(io.StringIO(table_csv(shown))))
    assert rows[0] == ["a, b", "robust", "robust (value)"]
    assert rows[1] == ['x "y"', "61.0 % [56.4, 65.4]", "0.6098765"] and rows[2] == ["z", "—", ""]


def test_latex_is_escaped_and_ruled() -> None:
    text = table_latex(table(("α_1 & ε",), [(Cell("50 % ± 1 #{}~^\\", strong=True),)]))
    body = text.split("\\midrule\n")[1].split(" \\\\")[0]
    assert body == (r"\textbf{50 \% $\pm$ 1 \#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}}")
    assert r"\_1 \& $\varepsilon$" in text and text.count(r"\begin{tabular}{l}") == text.count(r"\bottomrule") == 1


@pytest.mark.parametrize(("first", "second"), [(9, 2), (0, 6), (5, 5), (0, 0), (30, 12)])
def test_mcnemar_is_a_fair_coin(first: int, second: int) -> None:
    a = np.array([True] * first + [False] * second + [True] * 7)
    b = np.array([False] * first + [True] * second + [True] * 7)
    found = mcnemar(a, b)
    assert (found.first_only, found.second_only) == (first, second)
    n = first + second
    assert found.p == pytest.approx(binomtest(first, n).pvalue if n else 1.0)


def test_rows_stand_by_robustness_beside_a_named_baseline(make_run, capsys) -> None:
    runs = [
        make_run(name, method=name, robust=share) for name, share in (("pgd_at", 0.6), ("trades", 0.8), ("mart", 0.5))
    ]
    found = comparison_table(compare(runs))
    assert [row[0].text for row in found.table.rows] == ["trades", "pgd_at", "mart"]
    assert [row[0].strong for row in found.table.rows] == [True, False, False]
    assert "dataset digits; model cnn; threat L∞ 0.2" in found.note and "dataset" not in found.table.columns
    at = found.table.columns.index("− pgd_at")
    masks = [np.load(run / "evaluation" / "best.npz")["robust"] for run in runs]
    expected = mcnemar(masks[1], masks[0]).p
    assert found.table.rows[0][at].text == f"+20.0, p {'< 0.001' if expected < 0.001 else f'= {expected:.2g}'}"
    assert found.table.rows[1][at].text == "—"
    named = comparison_table(compare(runs), "mart").table
    assert named.columns[at] == "− mart" and named.rows[0][at].text.startswith("+30.0, p")
    report.report_runs(runs, runs[0].parent / "out", False, "mart")
    page = (runs[0].parent / "out" / "report.html").read_text()
    assert "--baseline mart" in page and "<strong>trades</strong>" in page
    assert (runs[0].parent / "out" / "tables" / "comparison.tex").is_file()
    with pytest.raises(ConfigError, match=r"--baseline: nobody.*pgd_at"):
        report.report_runs(runs, runs[0].parent / "out", False, "nobody")


def test_other_images_are_not_paired(make_run) -> None:
    a, b = make_run("a", method="pgd_at"), make_run("b", robust=0.7)
    path = b / "evaluation" / "best.json"
    path.write_text(path.read_text().replace("b" * 64, "c" * 64))
    found = comparison_table(compare([a, b])).table
    assert found.rows[0][found.columns.index("− pgd_at")].text == "+10.0"


def test_forward_passes_of_training_are_those_that_all_runs_tell(make_run) -> None:
    def told(run: Path, cost: float | None) -> None:
        path = run / "environment.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "forward_cost": cost}))

    a, b = make_run("a", seed=0), make_run("b", seed=1)
    assert compare([a, b]).rows[0].train_passes is None
    told(a, 23.0)
    assert compare([a, b]).rows[0].train_passes is None
    told(b, 23.0)
    assert compare([a, b]).rows[0].train_passes == 69.0
