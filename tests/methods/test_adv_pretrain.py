"""adv_pretrain: what is taken over and what begins anew, and adversarial training after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from atbench.config import values
from atbench.data import Source, TrainData
from atbench.data.digits import digits
from atbench.data.rotations import rotated
from atbench.errors import ConfigError
from atbench.methods import Stage
from atbench.methods.adv_pretrain import AdvPretrain
from atbench.methods.pgd_at import PgdAt
from atbench.models import Ensemble
from atbench.runs.run_dir import set_status, write_text
from atbench.runs.signals import SignalFlag
from atbench.training import checkpoint
from atbench.workflows import factory, pretraining
from atbench.workflows.stages import stage_config
from atbench.workflows.train import Run
from tests.support import worlds
from tests.support.configs import resolved
from tests.support.contract import ALONE, OVERRIDES

ROTATIONS = ["+dataset.labels=rotations", "train.augment=false"]


def make(model: nn.Module, other: nn.Module, pretrain: Any = (), given: TrainData | None = None) -> AdvPretrain:
    method = AdvPretrain(model, worlds.attack(clip_start=False), lambda stage, any_classes: other, pretrain)
    if given is not None:
        worlds.start(method, given)
    return method


def test_all_but_the_head_is_the_stages_to_the_bit() -> None:
    model, other = worlds.cnn(norm="batch"), worlds.cnn(classes=5, seed=9, norm="batch")
    other.mean += 0.1
    with torch.no_grad():
        other(torch.rand(4, *worlds.SHAPE, dtype=torch.float64))  # running statistics of its own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [id(parameter) for parameter in model.parameters()]
    make(model, other).load_pretrained({"pretrained": other})
    after, theirs = model.state_dict(), other.state_dict()
    for name, value in after.items():
        head = name.startswith("head.")
        assert torch.equal(value, before[name] if head else theirs[name]), name
    assert sum(name.startswith("head.") for name in after) == 2 and len(after["head.weight"]) == 3
    assert [id(parameter) for parameter in model.parameters()] == parameters, "optimizers hold these"


def test_from_its_own_beginning_it_is_pgd_training_to_the_bit() -> None:
    given = worlds.data()
    method, other = make(worlds.cnn(), worlds.cnn(), (), given), PgdAt(worlds.cnn(), worlds.attack(clip_start=False))
    method.load_pretrained({"pretrained": worlds.cnn()})
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_the_stage_is_adversarial_training_on_other_labels_or_a_finished_run() -> None:
    (stage,) = make(worlds.cnn(), worlds.cnn(), ROTATIONS).pretraining().values()
    pgd_at = {"_target_": "atbench.methods.pgd_at.PgdAt"}
    assert stage == Stage(pgd_at, 0.25, 1, tuple(ROTATIONS), live=True)
    (stage,) = make(worlds.cnn(), worlds.cnn(), "runs/there").pretraining().values()
    assert stage == Stage(checkpoint="runs/there", live=True)


def test_a_network_of_another_body_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.pretrain: dataset=cifar100 .*before the head, in 'stages"):
        make(worlds.cnn(), worlds.cnn(width=8), ["dataset=cifar100"])
    with pytest.raises(ConfigError, match="members=1"):
        make(Ensemble([worlds.cnn(), worlds.cnn()]), worlds.cnn())


def small_run(tmp_path: Path, *words: str) -> tuple[Run, DictConfig, Source]:
    whole = digits()
    source = replace(whole, train=whole.train.take(torch.arange(96)), validation=32)
    cfg = resolved("method=adv_pretrain", *OVERRIDES, *words)
    write_text(tmp_path / "status.json", "{}")
    return Run(cfg, source, ALONE, SignalFlag(), tmp_path, label="run"), cfg, source


def test_rotations_are_trained_first_in_a_folder_of_the_run(tmp_path: Path) -> None:
    run, cfg, _ = small_run(tmp_path)
    trainer = run.build_trainer(fresh=True)
    head = {name: value.clone() for name, value in trainer.method.model.head.state_dict().items()}
    taken: list[dict[str, Any]] = []
    load = trainer.method.load_pretrained

    def noted(stages: dict[str, nn.Module]) -> None:
        load(stages)
        taken.extend(
            {name: value.clone() for name, value in each.state_dict().items()}
            for each in (stages["pretrained"], trainer.method.model)
        )

    trainer.method.load_pretrained = noted  # type: ignore[method-assign]
    run.fit(trainer, None)
    stage, begun = taken
    assert stage["head.weight"].shape[0] == 4 and begun["head.weight"].shape[0] == 10
    assert worlds.same({key: begun[f"head.{key}"] for key in head}, head)
    body = [name for name in stage if not name.startswith("head.")]
    assert worlds.same({name: stage[name] for name in body}, {name: begun[name] for name in body})
    (folder,) = (tmp_path / "stages").iterdir()
    assert folder.name.startswith("pretrained-") and (folder / "checkpoints" / "last.pt").is_file()
    own = stage_config(cfg, trainer.method.pretraining()["pretrained"])
    assert own.train.epochs == 1 and values.plain(own.attack) == values.plain(cfg.attack)


def test_a_finished_run_on_other_labels_is_read(tmp_path: Path) -> None:
    whole = digits()
    turned = resolved("method=pgd_at", "+dataset.labels=rotations", *OVERRIDES)
    network = factory.make_model(turned, rotated(whole))
    write_text(tmp_path / "there" / "config.yaml", OmegaConf.to_yaml(turned))
    set_status(tmp_path / "there", state="done", exit_code=0, score=0.5)
    content = {"model": network.state_dict(), "epoch": 1, "config": OmegaConf.to_container(turned)}
    checkpoint.save(tmp_path / "there" / "checkpoints" / "last.pt", content)
    run, _, _ = small_run(tmp_path, f"method.pretrain={tmp_path / 'there'}")
    trainer = run.build_trainer(fresh=True)
    (planned,) = run.plan_stages(trainer.method).values()
    trainer.method.load_pretrained({"pretrained": pretraining.read_network(planned, torch.device("cpu"))})
    model = trainer.method.model
    assert worlds.same(model.stages.state_dict(), network.stages.state_dict()) and model.head.out_features == 10
