"""`atbench bench`: its arguments, and every kind at sizes that show nothing."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atbench.bench import KINDS, peers
from atbench.bench.results import read_bars
from atbench.bench.run import run
from atbench.cli.main import main

FIELDS = {"kind", "device", "platform", "versions", "threads", "rounds", "rows", "notes"}


def measured(kind: str, *parts: str, methods: tuple[str, ...] = ()) -> dict[str, Any]:
    return run(kind, parts, "cpu", rounds=1, methods=methods, as_json=True, tiny=True)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_gives_rows_and_facts(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = measured(kind, *KINDS[kind].parts)
    assert json.loads(capsys.readouterr().out) == document
    assert document.keys() == FIELDS and document["kind"] == kind
    assert document["threads"] == document["rounds"] == 1 and document["versions"]["torch"]
    names = [row["name"] for row in document["rows"]]
    assert len(names) == len(set(names)) and all(row["median"] >= 0 for row in document["rows"])
    judged = [row for row in document["rows"] if row["bar"]]
    assert judged and all(row["verdict"] in ("pass", "falls short") for row in judged)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_the_module(kind: str) -> None:
    assert KINDS[kind].parts == tuple(importlib.import_module(KINDS[kind].module).PARTS)


def test_only_measures_what_is_named() -> None:
    assert {row["name"].split("/")[0] for row in measured("data", "resident")["rows"]} == {"resident"}


def test_what_is_counted_is_at_the_floor() -> None:
    """No clock: a wrong count of operations or of the least shows here."""
    rows = measured("train", "floor")["rows"] + measured("eval", "sweep", "restarts")["rows"]
    counted = {row["name"]: row["median"] for row in rows if "floor" in row["name"]}
    assert set(counted) == {"floor/pgd_at", "sweep/floor", "restarts/floor"}
    assert all(0.95 <= value <= 1.02 for value in counted.values()), counted


def test_methods_are_listed_with_their_speed() -> None:
    rows = measured("train", methods=("trades", "fgsm_mep"))["rows"]
    assert {"methods/trades/cnn-b4-k1/fp32/images", "methods/fgsm_mep/cnn-b4-k1/fp32/images"} <= {
        r["name"] for r in rows
    }


def test_a_tool_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    others = {peers.MODULES.get(tool, tool) for tool in peers.INSTALL}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in others else find(name))
    document = measured("eval", "sweep", "autoattack")
    assert document["notes"] == [
        "torchattacks is not installed: pip install atbench[bench]",
        "pyautoattack is not installed: pip install atbench[bench]",
    ]
    assert {row["name"] for row in document["rows"]} == {"sweep/floor", "sweep/images", "autoattack/images"}


def test_every_bar_of_a_ratio_is_one_of_a_tool_and_a_contest() -> None:
    """A bar whose row has another name would judge nothing."""
    tools = {*peers.INSTALL, "torchvision", "DataLoader"}
    for kind in ("train", "eval", "data"):
        for name, bar in read_bars(kind).items():
            last = name.rpartition("/")[2]
            assert last in tools or last in ("*", "floor", "peak_share", "overhead", "agreement"), name
            assert bar.at_least or bar.at_most


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "bench: trian — there is no such kind; use one of train, eval, data, start"),
        (
            ["train", "--only", "floor,speed"],
            "bench --only: speed — there is no such part of bench train; use one of floor,",
        ),
        (
            ["eval", "--methods", "trades"],
            "bench --methods: eval — there is no such kind with methods; use one of train",
        ),
        (["train", "--methods", "traides"], "bench --methods: traides — there is no such method"),
        (["data", "--rounds", "0"], "--rounds: must be at least 1"),
        (["data", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["--json", "plan"], "plan comes first"),
        ([], "the following arguments are required: KIND"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and said in told.err and told.err.count("\n") == 1


def test_arguments_are_checked_before_torch_is_imported() -> None:
    code = """
import sys
from atbench.cli.main import main
assert main(["bench", "nothing"]) == main(["bench", "train", "--only", "x"]) == 2 and main(["bench", "--help"]) == 0
assert not {"torch", "numpy", "hydra"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
