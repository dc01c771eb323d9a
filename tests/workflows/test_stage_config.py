"""What a stage of pre-training is configured by: its run, and the words that tell it from that one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from atbench.errors import ConfigError
from atbench.methods import Stage
from atbench.runs.run_dir import write_text
from atbench.workflows.stages import stage_config
from tests.support.configs import resolved
from tests.support.contract import OVERRIDES

STANDARD = {"_target_": "atbench.methods.standard.Standard"}


def configuration(*words: str) -> DictConfig:
    return resolved("method=standard", *OVERRIDES, "train.epochs=1", *words)


def test_without_overrides_it_is_the_run_with_the_stages_method_seed_and_epochs() -> None:
    cfg = configuration("train.epochs=8", "seed=3", "plus=ema")
    own = stage_config(cfg, Stage(STANDARD, epochs=0.5, offset=2))
    assert own.method == STANDARD and own.plus == {} and own.seed == 5 and own.train.epochs == 4
    assert all(own[part] == cfg[part] for part in ("dataset", "model", "attack"))
    assert own.train.optimizer == cfg.train.optimizer and own.train.selection == cfg.train.selection


def test_another_architecture_is_a_group_with_settings_of_its_own() -> None:
    own = stage_config(configuration(), Stage(STANDARD, overrides=("model=lenet_madry", "model.hidden=[16]")))
    assert own.model._target_ == "atbench.models.plain.LeNet" and "width" not in own.model
    assert own.model.channels == [32, 64] and own.model.hidden == [16]


def test_another_data_set_and_another_recipe() -> None:
    cfg = configuration("train.selection.n=7")
    words = ("dataset=cifar100", "recipe=trades", "attack.eps=4/255", "train.label_smoothing=0.1")
    own = stage_config(cfg, Stage(STANDARD, overrides=words))
    assert own.dataset.about.name == "cifar100" and own.attack.eps == pytest.approx(4 / 255)
    assert own.train.batch_size == 128 and own.train.optimizer.lr == 0.1 and own.train.label_smoothing == 0.1
    assert own.train.epochs == cfg.train.epochs and own.train.selection == cfg.train.selection
    assert own.model == cfg.model, "what is not named stays the run's"


def test_an_option_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine conf"
    write_text(folder / "model" / "narrow.yaml", "defaults: [cnn, _self_]\nabout: {name: narrow}\nwidth: 2\n")
    monkeypatch.setenv("ATBENCH_ARGV", json.dumps(["train", "--config-dir", str(folder)]))
    assert stage_config(configuration(), Stage(STANDARD, overrides=("model=narrow",))).model.width == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=lenet_madri", r"model: lenet_madri .* did you mean 'lenet_madry'"),
        ("model.widht=3", r"model\.widht: 3 .* did you mean 'width'"),
        ("model.width=0", r"model\.width: 0 "),
        ("method=trades", r"stage: method=trades .* use dataset, model, attack, recipe"),
        ("seed=3", r"stage: seed=3 "),
        ("runs=elsewhere", r"stage: runs=elsewhere "),
    ],
)
def test_overrides_that_cannot_be_are_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        stage_config(configuration(), Stage(STANDARD, overrides=(word,)))
