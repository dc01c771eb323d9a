"""A comparison averages over seeds and over nothing else, and shows every run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from atbench.errors import DataError
from atbench.reporting import report
from atbench.reporting.comparison import compare
from atbench.reporting.comparison_report import comparison_table
from atbench.reporting.document import Cell
from atbench.reporting.run_folder import find_runs
from tests.support.outcomes import STANDARD


def as_json(capsys, *runs: Path) -> dict:
    assert report.report_runs(list(runs), None, True) == 0
    return json.loads(capsys.readouterr().out)


def test_mean_and_sample_deviation_over_seeds(make_run, capsys, tmp_path: Path) -> None:
    shares = (0.5, 0.6, 0.75)
    for seed, share in enumerate(shares):
        make_run(f"s{seed}", seed=seed, robust=share, last_robust=share - 0.1)
    found = as_json(capsys, tmp_path)
    (row,) = found["rows"]
    assert row["seeds"] == [0, 1, 2] and row["most_steps"] == 50
    assert row["best"]["pgd_max"]["values"] == pytest.approx(shares)
    assert row["best"]["pgd_max"]["mean"] == pytest.approx(statistics.mean(shares))
    assert row["best"]["pgd_max"]["std"] == pytest.approx(statistics.stdev(shares))
    assert row["drop"]["mean"] == pytest.approx(0.1) and row["drop"]["std"] == pytest.approx(0, abs=1e-9)
    assert row["train_seconds"]["mean"] == pytest.approx(101)
    assert not (tmp_path / "report").exists()  # --json writes no files
    assert report.report_runs([tmp_path], None, False) == 0
    out = capsys.readouterr().out
    assert "61.7 ± 12.6" in out and "+10.0 ± 0.0" in out and "upper bound" in out.lower()
    for file in ("report.md", "report.html"):
        assert "61.7 ± 12.6" in (tmp_path / "report" / file).read_text()


def test_one_seed_has_an_interval_and_no_deviation(make_run, capsys) -> None:
    run = make_run(robust=0.5)
    (row,) = as_json(capsys, run)["rows"]
    assert row["best"]["clean"]["std"] is None
    assert report.report_runs([run], run.parent / "out", False) == 0
    assert "50.0 [37.7, 62.3]" in capsys.readouterr().out


def test_runs_that_did_not_end_well_are_listed_and_not_averaged(make_run, capsys, tmp_path: Path) -> None:
    make_run("s0", seed=0)
    make_run("s1", seed=1, state="diverged", message="loss is NaN", robust=0.1)
    make_run("s2", seed=2, state="failed", message="disk full", checkpoints=())
    make_run("s3", seed=3, checkpoints=())
    (tmp_path / "s4").mkdir()
    (tmp_path / "s4" / "status.json").write_text("{")
    found = as_json(capsys, tmp_path)
    (row,) = found["rows"]
    assert row["seeds"] == [0]
    assert {(item["seed"], item["state"]) for item in row["left_out"]} == {(1, "diverged"), (2, "failed"), (3, "done")}
    assert len(found["unreadable"]) == 1
    report.report_runs([tmp_path], None, False)
    out = capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    for words in ("1 of 4", "loss is NaN", "disk full", "not evaluated", "s4"):
        assert words in out and words in page, words
    assert "10.0 [" not in page  # the diverged run's number is argmax of NaN


def test_a_collapsed_seed_is_named(make_run, capsys, tmp_path: Path) -> None:
    make_run("s0", seed=0, robust=0.6, last_robust=0.5)
    make_run("s1", seed=1, robust=0.6, last_robust=0.05)
    assert as_json(capsys, tmp_path)["rows"][0]["collapsed"] == [{"seed": 1, "best": 0.6, "last": 0.05}]
    report.report_runs([tmp_path], None, False)
    assert "Collapse: trades on digits, seed 1: PGD-50 60.0 % at the best checkpoint, 5.0 %" in capsys.readouterr().out


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(make_run, capsys, tmp_path: Path) -> None:
    make_run("a", seed=0, train={"epochs": 3})
    make_run("b", seed=1, train={"epochs": 5})
    make_run("c", seed=0, method="pgd_at")
    make_run("d", seed=0, plus={"awp": {"gamma": 0.01}})
    rows = as_json(capsys, tmp_path)["rows"]
    assert [(r["method"], r["plus"], r["differs"]) for r in rows] == [
        ("pgd_at", [], {"train.epochs": 3}),
        ("trades", [], {"train.epochs": 3}),
        ("trades", [], {"train.epochs": 5}),
        ("trades", ["awp"], {"train.epochs": 3}),
    ]


def test_unequal_threats_are_shown(make_run, tmp_path: Path) -> None:
    make_run("a", eps=0.1)
    make_run("b", eps=0.2, method="pgd_at")
    assert {(row.method, row.differs["attack.eps"]) for row in compare(find_runs([tmp_path])).rows} == {
        ("trades", 0.1),
        ("pgd_at", 0.2),
    }


def shown(*runs: Path) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    table = comparison_table(compare(runs)).table
    return table.columns, table.rows


def heads(*runs: Path) -> list[str]:
    """The columns of robust accuracies of a comparison, of the best checkpoint."""
    columns, rows = shown(*runs)
    assert all(len(row) == len(columns) for row in rows)
    return [column.removeprefix("best: ") for column in columns if column.startswith("best: ")][1:]


def cells(row: str, *runs: Path) -> dict[str, str]:
    columns, rows = shown(*runs)
    return next(dict(zip(columns, (c.text for c in found), strict=True)) for found in rows if found[0].text == row)


def settings(*runs: Path) -> str:
    """What the table says of the settings of all rows."""
    columns, rows = shown(*runs)
    return "; ".join(row[columns.index("settings")].text for row in rows)


def test_the_worst_case_of_the_same_attacks_is_a_column(make_run, capsys, tmp_path: Path) -> None:
    attacks = {"steps": (), "attacks": STANDARD, "sequential": True}
    a = make_run("a", seed=0, evaluated={**attacks, "steps": (20, 50)}, last_robust=0.5)
    b = make_run("b", seed=0, method="pgd_at", evaluated={**attacks, "steps": (20, 50)})
    assert heads(a, b) == ["PGD-20", "PGD-50", "worst case"]
    assert cells("trades", a, b)["best: worst case"].startswith("50.0 [")  # 36 of 60, and 3 + 2 + 1 broken
    assert cells("trades", a, b)["drop"] == "+10.0"
    found = as_json(capsys, a, b)
    assert found["headline"] == "the worst case per example of PGD-50, AutoAttack (standard)"
    assert found["rows"][1]["best"]["robust"]["mean"] == 0.5 and found["rows"][1]["drop"]["mean"] == pytest.approx(0.1)
    c, d = (make_run(name, method=name, evaluated=attacks) for name in "cd")
    assert heads(c, d) == ["AutoAttack (standard)"]
    report.report_runs([c, d], tmp_path / "out", False)
    out = capsys.readouterr().out
    assert "Upper bound: AutoAttack (standard). A stronger" in out and "attacked alike" not in out.lower()


def test_figures_of_different_attacks_are_never_in_one_column(make_run, capsys) -> None:
    a = make_run("a")
    b = make_run("b", method="pgd_at", evaluated={"attacks": {"square": {"steps": 100, "breaks": 9}}})
    c = make_run("c", method="mart", evaluated={"attacks": {"square": {"steps": 900, "breaks": 9}}})
    assert heads(a, b) == heads(b, c) == ["PGD-20", "PGD-50"]
    assert cells("pgd_at", a, b)["best: PGD-50"].startswith("60.0 [") and cells("pgd_at", a, b)["drop"] == "+0.0"
    assert "evaluation.attacks=square" in cells("pgd_at", a, b)["settings"]
    assert "evaluation.attacks.square=steps=100" in cells("pgd_at", b, c)["settings"]
    assert "square" not in cells("trades", a, b)["settings"]
    assert as_json(capsys, a, b)["rows"][0]["best"]["robust"]["mean"] == pytest.approx(
        0.45
    )  # its own, with its attacks
    report.report_runs([a, b], a.parent / "out", False)
    assert "The rows were not all attacked alike" in capsys.readouterr().out


def test_ways_of_running_pgd_have_columns_of_their_own(make_run) -> None:
    a, b = make_run("a"), make_run("b", method="pgd_at", evaluated={"restarts": 10, "steps": (20, 100)})
    assert heads(a, b) == [
        "PGD-20 (restarts=1)",
        "PGD-20 (restarts=10)",
        "PGD-50 (restarts=1)",
        "PGD-100 (restarts=10)",
    ]
    found = cells("pgd_at", a, b)
    assert found["best: PGD-20 (restarts=1)"] == "—" and found["best: PGD-100 (restarts=10)"].startswith("60.0 [")
    assert found["drop"] == "—", "no attack is common to both"
    shorter = make_run("c", method="mart", evaluated={"steps": (10, 20)})
    assert heads(a, shorter) == ["PGD-20", "PGD-50"]
    assert cells("mart", a, shorter)["best: PGD-50"] == "—"


def test_runs_under_different_attacks_are_not_averaged(make_run, capsys, tmp_path: Path) -> None:
    make_run("s0", seed=0)
    make_run("s1", seed=1, evaluated={"attacks": STANDARD})
    assert [row["seeds"] for row in as_json(capsys, tmp_path)["rows"]] == [[0], [1]]


def test_checkpoints_under_different_attacks_are_not_held_against_each_other(make_run, capsys) -> None:
    run = make_run(last_robust=0.1, last={"attacks": STANDARD})
    (row,) = as_json(capsys, run)["rows"]
    assert row["collapsed"] == [] and row["drop"]["mean"] == pytest.approx(0.5), "PGD-50 is what both have"
    report.report_runs([run], None, False)
    other = make_run("other")
    assert "evaluation.attacks=None (best), apgd_ce, apgd_t, fab_t, square (last)" in settings(run, other)
    assert "split" not in settings(run, other)
    assert "The checkpoints were attacked differently" in (run / "report.md").read_text()


def test_flags_of_an_audit_stand_beside_the_table(make_run, capsys) -> None:
    check = {"name": "gradients", "value": 0.4, "threshold": 0.01, "verdict": "flag", "sentence": "40 % have none."}
    audit = {"trusted": False, "flags": ["gradients"], "sentence": "1 flag.", "checks": [check]}
    a, b = make_run("a", evaluated={"audit": audit}), make_run("b", method="pgd_at")
    report.report_runs([a, b], a.parent / "out", False)
    assert capsys.readouterr().out.count("a: audit flag, gradients: 40 % have none.") == 1
    assert "a: audit flag, gradients: 40 % have none." in (a.parent / "out" / "report.html").read_text()
    assert [row["flags"] for row in as_json(capsys, a, b)["rows"]] == [[], ["gradients"]]


def test_a_seed_that_ran_twice_counts_once(make_run, capsys, tmp_path: Path) -> None:
    make_run("a", robust=0.5, started="2026-01-01T00:00:00")
    make_run("b", robust=0.4, started="2026-01-02T00:00:00")
    (row,) = as_json(capsys, tmp_path)["rows"]
    assert row["best"]["pgd_max"]["values"] == pytest.approx([0.4])
    assert "seed 0 ran again" in row["left_out"][0]["why"]


def test_a_missing_checkpoint_of_one_seed_leaves_a_gap_not_a_smaller_mean(make_run, capsys, tmp_path: Path) -> None:
    make_run("a", seed=0)
    make_run("b", seed=1, checkpoints=("best",))
    (row,) = as_json(capsys, tmp_path)["rows"]
    assert row["last"]["clean"] is None and row["drop"] is None and len(row["best"]["clean"]["values"]) == 2


def test_expanding_finds_each_run_once_and_no_stages(make_run, tmp_path: Path) -> None:
    run = make_run("sweep/a")
    make_run("sweep/a/stages/member0-12ab")
    assert find_runs([tmp_path, run, run / "."]) == [run]
    with pytest.raises(DataError, match="no such folder"):
        find_runs([tmp_path / "gone"])


def test_a_sweep_ends_with_its_comparison(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And with none where there is nothing to compare."""
    make_run("a", method="trades")
    report.report_sweep(tmp_path)
    assert capsys.readouterr().out == "" and not (tmp_path / "report").exists()
    make_run("b", method="mart")
    make_run("c", method="pgd_at", state="failed", checkpoints=(), message="dataset: digits is damaged")
    report.report_sweep(tmp_path)
    out = capsys.readouterr().out
    assert "trades" in out and "mart" in out and "dataset: digits is damaged" in out
    assert out.splitlines()[-1] == f"report  {tmp_path / 'report' / 'report.html'}"
