"""Networks that a method needs first: which it is handed, what is refused, and what a folder keeps of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from atbench.cli.main import main
from atbench.data import Source
from atbench.data.digits import digits
from atbench.errors import ConfigError, DataError
from atbench.methods import Stage
from atbench.methods.eat import Eat
from atbench.methods.standard import Standard
from atbench.models import Frozen
from atbench.models.heads import Hypersphere
from atbench.runs.run_dir import set_status, write_text
from atbench.runs.signals import SignalFlag
from atbench.training import Trainer, checkpoint
from atbench.workflows import factory, pretraining
from atbench.workflows.train import Run
from tests.support.configs import resolved
from tests.support.contract import ALONE, OVERRIDES
from tests.support.runs import QUICK, enter, final, only

STANDARD = {"_target_": "atbench.methods.standard.Standard"}


@pytest.fixture(scope="module")
def source() -> Source:
    whole = digits()
    return replace(whole, train=whole.train.take(torch.arange(96)), validation=32)


def configuration(*words: str) -> DictConfig:
    return resolved("method=standard", *OVERRIDES, "train.epochs=1", *words)


class Needs(Standard):
    """Clean training of a method that asks for networks."""

    stages: dict[str, Stage]
    given: dict[str, nn.Module]

    def pretraining(self) -> dict[str, Stage]:
        return self.stages

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        self.given = stages


Asks = Callable[..., Needs]


@pytest.fixture
def asks(source: Source, tmp_path: Path) -> Asks:
    """Runs a method with these stages in a folder, up to its own training, and returns the method."""

    def make(stages: dict[str, Stage], folder: str = "run", train: bool = True) -> Needs:
        run = Run(configuration(), source, ALONE, SignalFlag(), tmp_path / folder)
        trainer = run.build_trainer(fresh=True)
        method = Needs(trainer.method.model, trainer.method.attack)
        method.stages, method.clock = stages, trainer.method.clock
        trainer.method = method
        pretraining.check(run.plan_stages(method), run.folder)
        if train:
            set_status(run.folder, state="running")
            trainer.fit = lambda: None  # type: ignore[method-assign]
            run.fit(trainer, None)
        return method

    return make


def finished(folder: Path, source: Source, *words: str, done: bool = True) -> Path:
    """A finished run, but for its training: last.pt holds initial weights, best.pt others."""
    cfg = resolved("method=standard", *words)
    network = factory.make_model(cfg, source)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    set_status(folder, state="done" if done else "running", exit_code=0 if done else None, score=0.5)
    for name in ("last", "best"):
        content = {"model": network.state_dict(), "epoch": 1, "config": OmegaConf.to_container(cfg)}
        checkpoint.save(folder / "checkpoints" / f"{name}.pt", content)
        with torch.no_grad():
            network.head.weight.add_(1)
    return folder


def arrays(folder: Path, classes: int, side: int = 8) -> tuple[str, ...]:
    """A data set in a folder, and the words that name it."""
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (80, side, side, 1), np.uint8)
    np.savez(folder / "train.npz", image=image, label=np.arange(80) % classes)
    return "dataset=npz", f"dataset.source.path={folder}"


def test_a_network_comes_frozen_or_live(asks: Asks) -> None:
    """Live is trainable with dropout active; otherwise no `train()` switches it on again."""
    words = ("model=mnist_eat_c", "model.convs=[[4,3,1,0]]", "model.hidden=[8]")
    stages = {name: Stage(STANDARD, overrides=words, live=name == "live") for name in ("live", "still")}
    given = asks(stages).given
    live, still = given["live"], given["still"]
    x = torch.rand(8, 1, 8, 8)
    assert live.training and all(parameter.requires_grad for parameter in live.parameters())
    assert not torch.equal(live(x), live(x))
    assert isinstance(still, Frozen) and not any(parameter.requires_grad for parameter in still.parameters())
    assert torch.equal(still.train()(x), still(x))
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), still.parameters(), strict=True)), (
        "one configuration"
    )


def test_another_data_set_gives_another_head(asks: Asks, tmp_path: Path) -> None:
    words = (*arrays(tmp_path / "three", classes=3), "model.head=hypersphere")
    network = asks({"three": Stage(STANDARD, overrides=words, live=True)}).given["three"]
    assert isinstance(network.head, Hypersphere) and network(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert network.mean.item() == 0.5, "normalised as its data set is"
    (stage,) = (tmp_path / "run" / "stages").glob("three-*")
    assert OmegaConf.load(stage / "config.yaml").dataset.about.name == "npz"


def test_images_of_another_shape_are_refused(asks: Asks, tmp_path: Path) -> None:
    words = arrays(tmp_path / "large", classes=2, side=9)
    with pytest.raises(ConfigError, match=r"stage large: large — its images are \(1, 9, 9\)"):
        asks({"large": Stage(STANDARD, overrides=words)}, train=False)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_finished_run_is_read_and_not_trained(
    asks: Asks, source: Source, tmp_path: Path, best: bool, as_file: bool
) -> None:
    """Its last weights, or the selected epoch's, in its own architecture; the folder says which file it was."""
    there = finished(tmp_path / "there", source, "model=lenet_madry", "model.hidden=[8]", "model.channels=[2,4]")
    file = there / "checkpoints" / ("best.pt" if best else "last.pt")
    target = str(file if as_file else there)
    network = asks({"there": Stage(checkpoint=target, best=best and not as_file)}).given["there"]
    assert isinstance(network, Frozen)
    saved = checkpoint.read(file)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in network.network.state_dict().items())
    (stage,) = (tmp_path / "run" / "stages").glob("*")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert stage.name == f"there-{sha256[:8]}" and not (stage / "checkpoints").exists()
    status = json.loads((stage / "status.json").read_text())
    assert status["state"] == "done" and status["sha256"] == sha256 and str(file) in status["message"]
    assert OmegaConf.load(stage / "config.yaml").model.hidden == [8]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "is not a run folder"),
        ("nowhere/checkpoints/last.pt", "there is no such file"),
        ("begun", "is a run that is not finished; finish it: `atbench train resume="),
        ("altered", r"altered/checkpoints/last\.pt — stages.0.weight is \(4, .* where the network has \(8, "),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(asks: Asks, source: Source, tmp_path: Path, name: str, said: str) -> None:
    finished(tmp_path / "begun", source, done=False)
    altered = finished(tmp_path / "altered", source, "model.width=4")
    text = (altered / "config.yaml").read_text()
    write_text(altered / "config.yaml", text.replace("width: 4", "width: 8"))
    with pytest.raises(DataError, match=said):
        asks({"there": Stage(checkpoint=str(tmp_path / name))}, train=False)
    assert not (tmp_path / "run").exists()


def test_a_changed_checkpoint_is_refused_where_a_run_goes_on(asks: Asks, source: Source, tmp_path: Path) -> None:
    there = finished(tmp_path / "there", source)
    stages = {"there": Stage(checkpoint=str(there))}
    asks(stages)
    asks(stages)
    finished(there, source, "seed=1")
    with pytest.raises(DataError, match=r"stage there: .*last\.pt — is another checkpoint than this run began with"):
        asks(stages, train=False)
    asks(stages, folder="another")


def test_a_network_for_other_classes_is_refused_where_a_method_holds_it(source: Source, tmp_path: Path) -> None:
    """Of a run to be trained and of a finished one."""
    three = arrays(tmp_path / "three", classes=3)
    there = finished(tmp_path / "there", factory.make_source(resolved(*three)), *three)
    for stage in (Stage(STANDARD, overrides=three), Stage(checkpoint=str(there))):
        with pytest.raises(ConfigError, match=r"stage: .*its network is for 3 classes of .*digits has 10 classes"):
            factory.stage_network(configuration(), stage, source, ALONE)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The epochs that trainers began at."""
    begun: list[Any] = []
    real = Trainer.fit

    def noted(trainer: Trainer) -> None:
        begun.append(trainer.method.clock.epoch)
        real(trainer)

    monkeypatch.setattr(Trainer, "fit", noted)
    return begun


def test_a_stage_that_is_done_is_not_trained_again(asks: Asks, fits: list[Any], tmp_path: Path) -> None:
    """A run killed behind a stage goes on with it; another stage beside it is trained then."""
    first = {"a": Stage(STANDARD, overrides=("model.width=2",), live=True)}
    before = asks(first).given["a"].state_dict()
    (stage,) = (tmp_path / "run" / "stages").glob("a-*")
    kept = (stage / "checkpoints" / "last.pt").read_bytes()
    second = {**first, "b": Stage(STANDARD, offset=1, overrides=("model.width=2",), live=True)}
    given = asks(second).given
    assert fits == [0, 1, 0], "the first one, the same at its end, the second one"
    assert all(torch.equal(value, given["a"].state_dict()[name]) for name, value in before.items())
    assert (stage / "checkpoints" / "last.pt").read_bytes() == kept
    assert not torch.equal(given["a"].head.weight, given["b"].head.weight)


@pytest.mark.slow
def test_a_run_that_was_killed_behind_its_stages_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fits: list[Any]
) -> None:
    """EAT with a source of its own and a finished run: nothing is trained again, another checkpoint is refused."""
    enter(tmp_path, monkeypatch)
    assert main(["train", *QUICK, "method=standard", "runs=first"]) == 0
    (first,) = (tmp_path / "first").iterdir()
    words = ("method=eat", "~method.sources.conv", "~method.sources.mlp", f"+method.sources.there={first}")
    with monkeypatch.context() as killed:
        killed.setattr(Eat, "load_pretrained", Mock(side_effect=KeyboardInterrupt))
        assert main(["train", *QUICK, *words]) == 130
    run, file = only(tmp_path), first / "checkpoints" / "last.pt"
    (kept,), right = (run / "stages").glob("same-*/checkpoints/last.pt"), file.read_bytes()
    trained, fits[:] = kept.read_bytes(), []
    file.write_bytes((first / "checkpoints" / "best.pt").read_bytes())
    assert main(["train", f"resume={run}"]) == 3
    assert "is another checkpoint than this run began with" in capsys.readouterr().err and not fits
    file.write_bytes(right)
    assert main(["train", f"resume={run}"]) == 0
    assert fits == [1, 0] and kept.read_bytes() == trained
    state, there = final(run)["method"], checkpoint.read(file)["model"]
    assert all(torch.equal(value, state[f"sources.there.{name}"]) for name, value in there.items())
    file.unlink()
    assert main(["train", f"resume={run}"]) == 0, "a finished run is not gone on with"
