"""The way back into a run: what is compared with what it wrote down, what may be said again, what is finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atbench.cli.main import main
from atbench.config import validate
from atbench.errors import ConfigError, DataError
from atbench.training import checkpoint
from atbench.workflows import factory
from atbench.workflows.environment import checksum, environment_changes
from tests.support.runs import QUICK, WORDS, contents, enter, only, read


def test_the_words_of_the_run_may_be_said_again(begun: Path, unspent: list[str]) -> None:
    """Resolved is compared with resolved, and a group by its name."""
    again = ["attack.eps=0.2", "attack.eps=51/255", "method=standard", "train.optimizer.lr=1/20", "recipe=common"]
    assert main([*WORDS, f"resume={begun}", *again, "weights=start.pt", "train.time_limit=1/2"]) == 0
    assert unspent == ["fit", "evaluate", "finish"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("attack.eps=8/255", "attack.eps: 8/255 — the run has 0.2"),
        ("method=trades", "method: trades — the run has standard"),
        ("recipe=adam", "recipe: adam — the run has common"),
        ("+method.note=1", "method.note: 1 — the run has None"),
        ("~dataset.threat.l2", "dataset.threat.l2: ~dataset.threat.l2 — the run has another"),
        ("experiment=mnist_pgd_at", "experiment: mnist_pgd_at — the run has none"),
    ],
)
def test_other_words_are_refused(
    word: str, said: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(begun)
    assert main(["train", f"resume={begun}", word]) == 2
    assert said in capsys.readouterr().err and unspent == [] and contents(begun) == before


def test_what_is_free_takes_the_place_of_what_was(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        validate, "validate_config", lambda cfg: seen.append(cfg) or (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["train", f"resume={begun}", "logger=none", "train.time_limit=1/2", "train.checkpoint.steps=7"]) == 130
    assert seen[0].train.time_limit == 0.5 and seen[0].train.checkpoint.steps == 7
    assert "project" not in seen[0].logger, "replaced, not merged into"


# What was written down.


@pytest.mark.parametrize(
    ("key", "value", "code", "said"),
    [
        ("data_sha256", "0" * 64, 3, "dataset: "),
        ("parameters", 7, 3, "parameters: "),
        ("splits", {"train": 1}, 3, "splits: "),
        ("seed", 5, 3, "seed: 0 — the run was started with 5"),
        ("pool_sha256", "0" * 64, 3, "train.extra_data.path: "),
    ],
)
def test_facts_that_make_another_run_are_refused(
    key: str, value: Any, code: int, said: str, begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "environment.json"
    path.write_text(json.dumps({**read(path), key: value}))
    before = contents(begun)
    assert main(["train", f"resume={begun}"]) == code
    assert said in capsys.readouterr().err and unspent == [] and contents(begun) == before


def test_another_number_of_processes_is_refused(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint.read(begun / "checkpoints" / "last.pt")
    checkpoint.save(begun / "checkpoints" / "last.pt", {**state, "world": 2})
    assert main(["train", f"resume={begun}"]) == 2
    assert "1 processes — the run has 2; start 2: torchrun --nproc-per-node=2" in capsys.readouterr().err
    assert unspent == []


def test_what_costs_the_last_bits_is_said_and_kept(
    begun: Path, unspent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / "environment.json"
    then = {**read(path), "threads": 9, "packages": {**read(path)["packages"], "torch": "2.0"}}
    path.write_text(json.dumps(then))
    assert main(["train", f"resume={begun}"]) == 0 and unspent
    said = " ".join(capsys.readouterr().err.split())
    assert "not bit-exact" in said and "threads 1 (was 9)" in said and "'torch': '2.0'" in said
    (entry,) = read(path)["resumed"]
    assert entry["threads"] == 1 and entry["packages"]["torch"] != "2.0" and "device" not in entry
    path.unlink()
    assert main(["train", f"resume={begun}"]) == 0
    assert "environment.json is missing" in capsys.readouterr().err


def test_the_file_of_further_images_is_the_one_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", image=images)
    pool = ("method=rst", "train.extra_data.path=more.npz", "train.extra_data.labelled=null")
    assert main(["train", *QUICK, *pool, "train.time_limit=1e-5"]) == 75
    folder = only(tmp_path)
    np.savez(tmp_path / "more.npz", image=255 - images)
    for words in ([], ["data_dir=elsewhere"]):
        assert main(["train", f"resume={folder}", "train.time_limit=10", *words]) == 3
        assert "train.extra_data.path: " in capsys.readouterr().err


@pytest.mark.slow
def test_starting_weights_count_until_there_is_a_checkpoint(
    begun: Path, unspent: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(factory, "load_initial_weights", lambda model, path: started.append(path))
    assert main(["train", f"resume={begun}"]) == 0 and not started
    shutil.rmtree(begun / "checkpoints")  # killed before the first one
    assert main(["train", f"resume={begun}"]) == 0 and started == [Path("start.pt")]
    checkpoint.save(Path("start.pt"), {"model": {}})
    assert main(["train", f"resume={begun}"]) == 3
    assert "weights: " in capsys.readouterr().err


def test_facts_are_compared_where_they_were_kept() -> None:
    facts = {"seed": 0, "parameters": 1, "splits": {}, "data_sha256": "a", "pool_sha256": None, "processes": 1}
    assert environment_changes({"seed": 0}, facts, begun=True) == [], "an older version kept fewer"
    with pytest.raises(ConfigError, match="1 processes — the run has 4"):
        environment_changes({**facts, "processes": 4}, facts, begun=True)
    with pytest.raises(DataError, match=r"train\.extra_data\.path: None"):
        environment_changes({**facts, "pool_sha256": "b"}, facts, begun=True)


def test_a_checksum_is_of_a_file_or_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("one")
    first = checksum(tmp_path / "folder")
    (tmp_path / "folder" / "b").write_text("")
    assert checksum(tmp_path / "folder") != first
    assert checksum(tmp_path / "folder" / "a") != checksum(tmp_path / "folder" / "b")
    assert checksum(None) is checksum(tmp_path / "absent") is None


# What is damaged.
