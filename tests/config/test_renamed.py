"""Runs, checkpoints, records and command lines of version 0.1.0 work, and say what a key is called now."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from atbench.cli.main import main
from atbench.config import allow_list
from atbench.config.renamed import KEYS, renamed_class, renamed_config, renamed_override, renamed_record
from atbench.training import checkpoint

#: What configurations of version 0.1.0 could name and is called otherwise now.
OLD = [
    "attacks.apgd.APGD",
    "attacks.apgd.TargetedAPGD",
    "attacks.confident.Confident",
    "attacks.cw.CarliniL2",
    "attacks.deepfool.DeepFool",
    "attacks.diverse.Diverse",
    "attacks.estimate.NES",
    "attacks.estimate.SPSA",
    "attacks.fab.FAB",
    "attacks.fab.FABT",
    "attacks.feature.FeatureAttack",
    "attacks.fmn.FMN",
    "attacks.foreign.Foolbox",
    "attacks.gama.GAMA",
    "attacks.md.MarginDecomposition",
    "attacks.noise.Noise",
    "attacks.odi.ODI",
    "attacks.pgd.Pgd",
    "attacks.pgd.RandomFgsm",
    "attacks.relaxation.ConstraintRelaxation",
    "attacks.search.GradientAttack",
    "attacks.square.Square",
    "attacks.targeted.Targeted",
    "attacks.transfer.Transfer",
    "data.arrays.npz",
    "data.folders.folder",
    "data.folders.tiny_imagenet",
    "data.published.published",
    "data.mixing.CutMix",
    "data.mixing.MixUp",
    "models.library.TorchVision",
    "models.library.Wrapped",
    "training.averaging.Ema",
    "training.averaging.Swa",
    "training.awp.WeightPerturbation",
]
QUICK = ("dataset=digits", "model.width=4", "train.epochs=2", "logger=none", "device=cpu", "name=old")
EVALUATED = ("eval=smoke", "eval.limit=8", "attack.steps=1", "train.selection.steps=1", "train.selection.n=16")


@pytest.mark.parametrize("name", OLD)
def test_every_class_of_the_version_before_is_one_of_today(name: str) -> None:
    now = renamed_class(f"atbench.{name}")
    known = allow_list.SOURCES | allow_list.AUGMENTATIONS | allow_list.MODELS | allow_list.ATTACKS | allow_list.PLUS
    assert now in known and now != f"atbench.{name}" and renamed_class(now) == now


def test_names_of_today_stay() -> None:
    for names in (allow_list.METHODS, allow_list.ATTACKS, allow_list.SCHEDULES, allow_list.MODELS):
        assert all(renamed_class(name) == name for name in names)
    config = {"train": {"extra_data": {"path": None}}, "attack": {"_target_": "torch.nn.ReLU", "keep": 1}, "seed": 0}
    assert renamed_config(config) == config


@pytest.mark.parametrize("old", KEYS)
def test_an_old_key_on_the_command_line_becomes_the_new_one(old: str) -> None:
    assert renamed_override(f"+{old}=1") == (f"+{KEYS[old]}=1", old)
    assert renamed_override(f"{old}.inner=a=b")[0] == f"{KEYS[old]}.inner=a=b"
    assert renamed_override(f"{old}x=1") == (f"{old}x=1", None)


def test_the_new_name_is_told(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "train.minutes=3", "+attack.keep=best"]) == 0
    told = capsys.readouterr().err
    assert "train.minutes is now train.time_limit" in told and "attack.keep is now attack.return_point" in told
    assert stub.configs[0].train.time_limit == 3 and stub.configs[0].attack.return_point == "best"


def old_names(node: Any) -> Any:
    """A configuration of today in the names of version 0.1.0."""
    text = yaml.safe_dump(node, sort_keys=False)
    for name in OLD:
        text = text.replace(renamed_class(f"atbench.{name}"), f"atbench.{name}")
    for old, new in (
        ("keep", "return_point"), ("draws", "eot_samples"), ("pool", "extra_data"), ("decay", "weight_decay_on"),
        ("minutes", "time_limit"), ("survivors", "sequential"), ("line", "summary"), ("knowledge", "access"),
    ):  # fmt: skip
        text = text.replace(f" {new}:", f" {old}:")
    return yaml.safe_load(text)


@pytest.mark.slow
def test_a_run_of_the_version_before_is_resumed_evaluated_verified_and_exported(here: Path) -> None:
    words = [*QUICK, *EVALUATED, "runs=."]
    assert main(["train", *words, "train.time_limit=1e-6", "train.checkpoint.steps=1"]) == 75
    assert main(["train", *words, "name=new"]) == 0
    (run,), (new,) = here.glob("*-old"), here.glob("*-new")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert old_names(config) != config and renamed_config(old_names(config)) == config
    (run / "config.yaml").write_text(yaml.safe_dump(old_names(config), sort_keys=False))
    for path in (run / "checkpoints").glob("*.pt"):
        state = checkpoint.read(path)
        checkpoint.save(path, {**state, "config": old_names(state["config"])})
    assert main(["train", f"resume={run}", "train.time_limit=9"]) == 0
    weights = [checkpoint.read(each / "checkpoints" / "last.pt")["model"] for each in (run, new)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])

    for path in (run / "evaluation").glob("*.json"):
        record = json.loads(path.read_text())
        older = {**old_names(record), "schema": 2}
        older["plan"]["survivors"] = older["plan"].pop("sequential", older["plan"].get("survivors"))
        assert renamed_record(copy.deepcopy(older)) == record
        path.write_text(json.dumps(older))
        beside = path.with_suffix(".yaml")
        beside.write_text(yaml.safe_dump(old_names(yaml.safe_load(beside.read_text()))))
    assert main(["eval", f"verify={run}"]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["export", str(run), "--out", "exported"]) == 0
    assert main(["eval", str(run), "eval=smoke", "eval.limit=4", "eval.survivors=true"]) == 0


def test_an_old_key_in_a_file_of_the_users_is_refused_with_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "method").mkdir()
    text = "# @package _global_\ndefaults: [pgd_at]\ntrain: {minutes: 3}\n"
    (tmp_path / "method" / "mine.yaml").write_text(text)
    assert main(["train", "--config-dir", str(tmp_path), "method=mine", "--cfg", "job"]) == 2
    assert "train.minutes" in (error := capsys.readouterr().err) and "is now train.time_limit" in error
