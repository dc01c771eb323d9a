"""`atbench report table1`: results read back, the table in Markdown and JSON, bands, and refusals."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from atbench.cli.main import main
from atbench.interval import accuracy_figures
from atbench.reporting.reproduction import band, read_result
from atbench.reporting.table1 import NOT_RUN, SMOKE, survey_rows

N, AA_N = 1000, 500


def figure(right: int, n: int, **more: Any) -> dict[str, Any]:
    return {**accuracy_figures(right, n), "n": n, **more}


def autoattack(pgd: int, after: tuple[int, int, int, int]) -> dict[str, Any]:
    """Rights of AA_N images: under PGD, and after each attack of AutoAttack."""
    names = ("apgd_ce", "apgd_t", "fab_t", "square")
    left = {name: right / AA_N for name, right in zip(names, after, strict=True)}
    return figure(after[-1], AA_N, pgd=figure(pgd, AA_N, name="PGD-20"), after=left)


SEED = {"seed": 0, "clean": figure(950, N), "pgd": figure(740, N, name="PGD-20"), "selected": "last"}
RESULT = {
    "row": "trades", "method": "trades", "tier": "smoke", "command": ["atbench train x"], "n": N, "note": "12 epochs",
    "device": "cpu", "versions": {}, "hashes": {},
    "seeds": [
        {**SEED, "autoattack": autoattack(380, (375, 305, 304, 300))},
        {**SEED, "seed": 1, "pgd": figure(760, N, name="PGD-20"), "autoattack": None},
    ],
}  # fmt: skip


def put(results: Path, **changes: Any) -> Path:
    content = {**deepcopy(RESULT), **changes}
    path = results / content["tier"] / f"{content['row']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if f" | {row} | " in line)
    return [cell.strip() for cell in line.replace("\\", "").strip("| ").split(" | ")]


def test_a_row_stands_beside_the_survey_s_with_seeds_and_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    assert main(["report", "table1", f"results={tmp_path}"]) == 0
    text = capsys.readouterr().out
    found = cells(text, "trades")
    assert found[:4] == ["2", "trades", "84.03 %: CW10, 0.031, Wide ResNet, CIFAR-10", "ATTACK"]
    assert found[5] == "53.08 %: AutoAttack, RobustBench, WRN-34-10"
    assert found[6] == "95.0 [93.5, 96.2], seeds 95.0–95.0"
    low, high = (100 * accuracy_figures(750, N)[key] for key in ("low", "high"))
    assert found[7] == f"PGD-20: 75.0 [{low:.1f}, {high:.1f}], seeds 74.0–76.0", "the interval of n images, not of 2 n"
    low, high = (100 * accuracy_figures(300, AA_N)[key] for key in ("low", "high"))
    assert found[8] == f"60.0 [{low:.1f}, {high:.1f}]" and found[9] == "1,000; AutoAttack 500; seeds 0, 1; last"
    assert found[10].startswith("16.0, most of it found by APGD on targeted margins") and found[11] == "—"
    assert found[12] == "12 epochs"
    assert SMOKE.replace("[", "\\[") in text and "tier=short" not in text.replace("\\", "")


def test_all_rows_stand_in_the_survey_s_order_and_those_not_run_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    main(["report", "table1", f"results={tmp_path}"])
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [int(line.split("|")[1]) for line in lines] == list(range(1, 35))
    assert cells(text, "mart")[6:] == [NOT_RUN] * 4 + ["—"] * 3
    assert [row.survey["row"] for row in survey_rows()] == list(range(1, 35))


def test_json_holds_what_markdown_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path)
    assert main(["report", "table1", f"results={tmp_path}", "--json", "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "table1.json").read_text())
    assert (tmp_path / "out" / "table1.md").read_text().startswith("# Table 1")
    rows = {row["row"]: row for row in printed["rows"]}
    ours = rows["trades"]["ours"]["smoke"]
    assert rows["trades"]["survey"]["accuracy"] == 84.03 and rows["mart"]["ours"] == {"smoke": None}
    assert ours["pgd"]["seeds"] == [0.74, 0.76] and ours["pgd"]["accuracy"] == 0.75 and ours["pgd"]["n"] == N
    assert ours["gap"] == pytest.approx(0.16) and ours["band"] is None and ours["autoattack"]["accuracy"] == 0.6
    assert ours["command"] == ["atbench train x"] and ours["note"] == "12 epochs"


def test_each_tier_has_a_table_and_one_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path)
    put(tmp_path, tier="paper", seeds=RESULT["seeds"][:1])
    main(["report", "table1", f"results={tmp_path}"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")] == [
        "## tier=smoke",
        "## tier=paper",
    ]
    main(["report", "table1", f"results={tmp_path}", "tier=paper"])
    text = capsys.readouterr().out
    assert text.count("## tier=") == 1 and cells(text, "trades")[11] == "outside by 5.42 points: 53.08 ± 1.50"


@pytest.mark.parametrize(
    ("right", "std", "holds"),
    [
        (7575, None, True),
        (7576, None, False),
        (7275, None, True),
        (7274, None, False),
        (7575, 0.5, True),
        (7576, 0.5, False),
        (7725, 1.0, True),
        (7726, 1.0, False),
        (7125, 1.0, True),
    ],
)
def test_a_band_is_the_larger_of_1_5_points_and_3_deviations(
    tmp_path: Path, right: int, std: float | None, holds: bool
) -> None:  # fmt: skip
    seed = {**SEED, "autoattack": {**autoattack(380, (375, 305, 304, 300)), **figure(right, 10_000)}}
    result = read_result(put(tmp_path, tier="short", seeds=[seed]))
    peer = {"accuracy": 74.25, "attack": "AutoAttack", "of": "a peer", "std": std, "tier": "short"}
    limits = band(result, peer)
    assert limits is not None and limits.holds is holds and limits.text.startswith("inside" if holds else "outside")


def test_no_band_in_smoke_in_another_setting_and_under_another_attack(tmp_path: Path) -> None:
    smoke, paper = read_result(put(tmp_path)), read_result(put(tmp_path, tier="paper"))
    peer = {"accuracy": 60.0, "attack": "AutoAttack", "of": "a peer", "tier": "paper"}
    assert band(paper, peer) is not None
    assert band(smoke, peer) is None and band(smoke, {**peer, "tier": "smoke"}) is None
    assert band(paper, {**peer, "attack": "APGD-DLR"}) is None and band(paper, None) is None
    assert band(paper, {**peer, "tier": "short"}) is None and band(paper, {**peer, "tier": None}) is None
    alone = read_result(put(tmp_path, tier="paper", seeds=RESULT["seeds"][1:]))
    assert alone.autoattack is None and alone.gap is None and band(alone, peer) is None


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((375, 305, 304, 300), "APGD on targeted margins"),
        ((300, 299, 299, 299), "PGD had not converged"),
        ((380, 375, 370, 200), "gradients are masked"),
        ((370, 360, 350, 341), ""),
    ],
)
def test_a_wide_gap_is_explained_by_the_attack_that_found_it(
    tmp_path: Path, after: tuple[int, int, int, int], said: str
) -> None:
    result = read_result(put(tmp_path, seeds=[{**SEED, "autoattack": autoattack(380, after)}]))
    assert result.gap == pytest.approx((380 - after[-1]) / AA_N)
    assert said in result.gap_reason and bool(result.gap_reason) == bool(said)


def damaged(results: Path, change: str) -> None:
    path = put(results)
    content = json.loads(path.read_text())
    match change:
        case "cut off":
            path.write_text(path.read_text()[:200])
        case "a list":
            path.write_text("[]")
        case "no seeds":
            path.write_text(json.dumps({**content, "seeds": []}))
        case "other images":
            content["seeds"][1]["pgd"]["n"] = 7
            path.write_text(json.dumps(content))
        case "no share":
            content["seeds"][0]["clean"]["accuracy"] = 95.0
            path.write_text(json.dumps(content))
        case "no key":
            del content["seeds"][0]["autoattack"]["after"]
            path.write_text(json.dumps(content))
        case "another tier":
            path.write_text(json.dumps({**content, "tier": "paper"}))


@pytest.mark.parametrize(
    "change", ["cut off", "a list", "no seeds", "other images", "no share", "no key", "another tier"]
)
def test_a_damaged_result_is_one_line(tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(tmp_path, change)
    assert main(["report", "table1", f"results={tmp_path}"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "trades.json" in err and err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["results=nowhere"], 3, "there is no such folder"),
        (["tier=smoek"], 2, "use one of smoke, short, paper"),
        (["reslts=x"], 2, "there is no such setting"),
        (["results="], 2, "there is no such setting"),
        (["--jsn"], 2, "--jsn"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert main(["report", "table1", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and said in err


def test_without_a_result_the_rows_are_there_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert main(["report", "table1"]) == 0
    assert capsys.readouterr().out.count(f"| {' | '.join([NOT_RUN] * 4)} |") == 34
