"""`scripts/repro.py` on a program that writes records instead of training."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from atbench.errors import ConfigError
from atbench.interval import accuracy_figures
from atbench.reporting.reproduction import read_result
from scripts import ladder_table, repro, repro_results, repro_rows
from tests.support.outcomes import N
from tests.support.repro_program import CONFIG, Program, make


def a_run(folder: Path, **config: Any) -> Path:
    """What is read of a run before it is attacked."""
    (folder / "status.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
    return folder


def test_a_row_is_trained_attacked_and_written_whole(tmp_path: Path, program: Program) -> None:
    assert make(tmp_path, "trades") == 0
    (first, autoattack, second) = program.calls
    common = {"train", "experiment=table1/trades", "tier=smoke", "data_dir=images", "eval.limit=5000"}
    assert common | {"seed=0"} < {*first} and common | {"seed=1"} < {*second}
    assert {"eval", "eval=auto", "eval.limit=500", "threads=1", "eval.checkpoints=[last]"} < {*autoattack}
    row = json.loads((tmp_path / "results" / "smoke" / "trades.json").read_text())
    seeds = row.pop("seeds")
    assert len(row.pop("hashes")["config"]) == 64 and str(tmp_path) not in json.dumps(row) + json.dumps(seeds)
    assert row["command"][0].startswith("atbench train -m experiment=table1/trades tier=smoke seed=0,1 ")
    assert row["command"][1].startswith("atbench eval RUN eval=auto ") and "images" not in str(row["command"])
    del row["command"]
    assert row == {
        "row": "trades", "method": "trades", "tier": "smoke", "n": N, "peer": None, "device": "cpu, A CPU, 1 thread",
        "versions": {"atbench": "abc1234", "torch": "2.15.0", "python": "3.12.1"},
        "note": "strided on mnist14, 12 epochs instead of 15",
    }  # fmt: skip
    assert [seed["seed"] for seed in seeds] == [0, 1] and seeds[1]["autoattack"] is None
    for seed in seeds:
        assert seed["clean"] == {**accuracy_figures(58, N), "n": N}
        assert seed["pgd"]["name"] == "PGD-20" and seed["pgd"]["n"] == N and seed["pgd"]["low"] < seed["pgd"]["high"]
        assert (seed["selected"], seed["train_seconds"], seed["epochs"]) == ("last", 45.2, 12)
    attacked = seeds[0]["autoattack"]
    assert attacked["after"] == {"apgd_ce": 33 / N, "apgd_t": 31 / N, "fab_t": 30 / N, "square": 30 / N}
    assert attacked["accuracy"] == 30 / N and attacked["n"] == N and attacked["pgd"]["name"] == "PGD-20"
    gap = read_result(tmp_path / "results" / "smoke" / "trades.json").gap
    assert gap == pytest.approx(attacked["pgd"]["accuracy"] - 30 / N) and gap > 0


def test_what_is_done_is_left_and_what_was_cut_off_goes_on(tmp_path: Path, program: Program) -> None:
    program.fails["eval"] = 2
    assert make(tmp_path, "trades", "--seeds", "0") == 1
    assert not (tmp_path / "results").exists(), "a row without AutoAttack is not complete"
    assert make(tmp_path, "trades", "--seeds", "0") == 0
    assert program.verbs() == ["train", "eval", "eval", "eval"]
    assert make(tmp_path, "trades", "--seeds", "0") == 0
    assert len(program.calls) == 4
    program.cut, program.fails["train"] = True, 1
    assert make(tmp_path, "mart", "--seeds", "0") == 0
    assert program.calls[5][1].startswith(f"resume={tmp_path}/runs/smoke/mart-")


def test_a_changed_row_is_made_anew(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(tmp_path, "trades", "--seeds", "0") == 0
    monkeypatch.setattr(repro, "config_sha256", lambda words: "f" * 64)
    assert make(tmp_path, "trades", "--seeds", "0") == 0
    assert program.verbs() == ["train", "eval"] * 2
    assert read_result(tmp_path / "results" / "smoke" / "trades.json").record["hashes"]["config"] == "f" * 64


@pytest.mark.slow
def test_what_fails_is_tried_again_and_named_with_its_log(
    tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program.fails["experiment=table1/mart"], program.fails["experiment=table1/trades"] = 4, 1
    assert make(tmp_path, "table1") == 1
    failed = capsys.readouterr().err.splitlines()
    assert len(failed) == 2 and all(line.startswith("failed: mart seed ") for line in failed)
    log = Path(failed[0].rpartition("see ")[2])
    assert "exit 5" in failed[0] and log.read_text() == "the disk is full"
    tries = Counter(word for call in program.calls for word in call if word.startswith("experiment="))
    assert tries["experiment=table1/mart"] == 4 and tries["experiment=table1/trades"] == 3
    assert tries["experiment=table1/pgd_at"] == 2
    written = {path.stem for path in (tmp_path / "results" / "smoke").iterdir()}
    assert written == {row.key for row in repro_rows.rows_of("table1", "smoke")} - {"mart"}


@pytest.mark.parametrize("ended", [0, 1], ids=["the run went on", "the run was ended too"])
def test_a_signal_begins_nothing_more(
    ended: int, tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program.act, program.fails["train"] = (lambda: signal.raise_signal(signal.SIGTERM)), ended
    before = signal.getsignal(signal.SIGTERM)
    assert make(tmp_path, "table1") == 143
    assert len(program.calls) == 1 and signal.getsignal(signal.SIGTERM) is before
    out, err = capsys.readouterr()
    assert out == "" and err == "stopped; the same command goes on\n"


def test_short_and_paper_attack_every_image_by_the_paper_s_steps(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for tier, steps in (("smoke", 20), ("short", 100), ("paper", 1000)):
        row = repro_rows.table1(tier)["iaat"]
        words = (repro.pgd_words(row, tier), repro.autoattack_words(row, tier, run))
        assert f"eval.steps=[1,{steps}]" in words[0] and f"eval.steps=[{steps}]" in words[1]
        assert any("limit" in word for word in words[0] + words[1]) == (tier == "smoke")
    assert repro_rows.table1("paper")["trades"].steps == 20, "CW10 is no PGD"


def test_autoattack_has_the_radius_of_the_run_s_own_evaluation(tmp_path: Path) -> None:
    """FAT is trained at twice the radius that it is attacked at."""
    row = repro_rows.table1("paper")["fat"]
    words = repro.autoattack_words(row, "paper", a_run(tmp_path, eval={"eps": 0.031}))
    assert "eval.eps=0.031" in words
    assert not any("eval.eps=" in word for word in repro.autoattack_words(row, "paper", a_run(tmp_path)))


def test_any_method_has_a_row_of_its_own() -> None:
    assert [row.words for row in repro_rows.rows_of("gairat", "smoke")] == [("tier=smoke", "method=gairat")]
    assert [row.words for row in repro_rows.rows_of("gairat", "paper")] == [("experiment=paper/gairat",)]
    assert repro_rows.rows_of("trades", "short")[0].words == ("experiment=table1/trades", "tier=short")
    with pytest.raises(ConfigError, match=r"there is no experiment=paper/mail_mart"):
        repro_rows.rows_of("mail_mart", "paper")


def test_fastat_has_the_benchmark_s_setting_in_paper_and_its_methods_in_the_others() -> None:
    rows = {row.key: row for row in repro_rows.rows_of("fastat", "paper")}
    assert len(rows) == 21 and rows["nu_at"].words == ("experiment=fastat/nu_at",)
    assert rows["pgd_at"].checkpoint == "last" and rows["pgd_at_wa"].checkpoint == "best"
    assert rows["nu_at"].peer["accuracy"] == 50.10
    short = {row.key: row for row in repro_rows.fastat("short")}
    assert short["pgd_at"].words == ("tier=short", "method=pgd_at")
    assert short["fgsm_rs"].words == ("tier=short", "method=fast_at", "method.drop=null", "plus=[ema]")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["tradse"], "'trades'"), (["trades", "--tier", "smoek"], "smoke, short, paper"), ([], "no row")],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert repro.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_a_row_that_hydra_refuses_is_named(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repro, "config_sha256", repro_results.config_sha256)
    monkeypatch.setattr(repro, "rows_of", lambda what, tier: [repro_rows.Row("x", ("method=tradse",))])
    assert make(tmp_path, "x", "--seeds", "0") == 1 and not program.calls
    assert capsys.readouterr().err.startswith("failed: x seed 0: method: tradse — ")


def test_the_hash_is_that_of_what_changes_a_figure() -> None:
    first = repro_results.config_sha256(("method=pgd_at",))
    assert first == repro_results.config_sha256(("method=pgd_at", "seed=1", "runs=elsewhere", "threads=1"))
    assert first != repro_results.config_sha256(("method=pgd_at", "train.epochs=3"))


def test_readme_shows_what_results_holds(tmp_path: Path) -> None:
    """`python -m scripts.repro --readme` puts them in step."""
    copy = tmp_path / "README.md"
    copy.write_text(repro_results.README.read_text(encoding="utf-8"), encoding="utf-8")
    repro_results.write_readme(copy)
    assert copy.read_text(encoding="utf-8") == repro_results.README.read_text(encoding="utf-8")
    assert repro_results.BEGIN in copy.read_text(encoding="utf-8")
    page = tmp_path / "reproduction.md"
    page.write_text(ladder_table.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    ladder_table.write_ladder(page)
    assert page.read_text(encoding="utf-8") == ladder_table.PAGE.read_text(encoding="utf-8")
    assert ladder_table.BEGIN in page.read_text(encoding="utf-8")


def test_the_table_of_readme_has_a_line_for_each_row(tmp_path: Path, program: Program) -> None:
    (tmp_path / "results").mkdir()
    assert repro_results.section(tmp_path / "results") == repro_results.NO_ROWS
    make(tmp_path, "trades")
    _, _, line = repro_results.section(tmp_path / "results").splitlines()
    assert line.startswith("| `trades` | 96.7 [") and " | PGD-20: " in line
    assert line.endswith(" | 45 | smoke | 60, AutoAttack 60 | 2 | cpu, A CPU, 1 thread |")
    make(tmp_path, "mart")
    said, _, head, *_ = repro_results.section(tmp_path / "results").splitlines()
    assert said == "The same in every row: tier smoke; images 60, AutoAttack 60; seeds 2; device cpu, A CPU, 1 thread."
    assert head.endswith("| AutoAttack % | PGD − AutoAttack, same images | training of a seed, s |")
