"""Teachers: a finished run, an export or a file of weights is read, and every one is measured before it teaches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from atbench.data.digits import digits
from atbench.errors import AtbenchError, ConfigError, DataError
from atbench.methods import Stage
from atbench.methods.teacher import Taught
from atbench.reporting.run_folder import read_run
from atbench.reporting.run_report import _stage_line
from atbench.runs.run_dir import set_status, write_json, write_text
from atbench.runs.signals import SignalFlag
from atbench.training import checkpoint
from atbench.workflows import factory, pretraining, teachers
from atbench.workflows.export import export_config
from atbench.workflows.stages import stage_config
from atbench.workflows.train import Run
from tests.support.configs import resolved
from tests.support.contract import ALONE, OVERRIDES

WORDS = ("method=rslad", *OVERRIDES, "attack.steps=1", "train.epochs=1")
OTHER = ("model.width=6", "model.activation=elu")  # another network than the student's
KINDS = ("run", "run/checkpoints/best.pt", "export", "export/model.safetensors", "weights.pth")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that has learnt clean digits, no more."""
    cfg, source = resolved(*WORDS, *OTHER), digits()
    made = factory.make_model(cfg, source)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for rows in torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0)).repeat(4).split(64):
        optimizer.zero_grad()
        F.cross_entropy(made(source.train.floats(rows, torch.float32)), source.train.y[rows]).backward()
        optimizer.step()
    return made.eval()


def write(folder: Path, network: nn.Module) -> None:
    """The network as a run, as an export and as a file of weights."""
    cfg, source = resolved(*WORDS, *OTHER), digits()
    write_text(folder / "run" / "config.yaml", OmegaConf.to_yaml(cfg))
    set_status(folder / "run", state="done", exit_code=0, score=0.5)
    content = {"model": network.state_dict(), "epoch": 1, "config": OmegaConf.to_container(cfg)}
    checkpoint.save(folder / "run" / "checkpoints" / "best.pt", content)
    (folder / "export").mkdir()
    save_file(network.state_dict(), folder / "export" / "model.safetensors")
    record = {"weights_sha256": "0", "checkpoint": "best", "epoch": 1, "threat": {"norm": "linf", "eps": 0.1}}
    write_json(folder / "export" / "config.json", export_config(cfg, source, network, record))
    torch.save(
        {"state_dict": {f"module.{key}": each for key, each in network.state_dict().items()}}, folder / "weights.pth"
    )


@pytest.fixture
def there(tmp_path: Path, network: nn.Module) -> Path:
    write(tmp_path / "there", network)
    return tmp_path / "there"


def named(path: Path) -> tuple[str, ...]:
    """The words that name a teacher; with its network where the file is of weights alone."""
    model = f"method.teacher_model={list(OTHER)}"
    return (f"method.teacher={path}", *([model] if path.suffix == ".pth" else []))


def begun(folder: Path, *words: str) -> Taught:
    """A run of RSLAD up to its first step, stages included."""
    run = Run(resolved(*WORDS, *words), digits(), ALONE, SignalFlag(), folder)
    trainer = run.build_trainer(fresh=True)
    planned = run.plan_stages(trainer.method)
    pretraining.check(planned, folder)
    run.measured = teachers.measure_finished(planned, trainer)
    set_status(folder, state="running")
    trainer.fit = lambda: None  # type: ignore[method-assign]
    run.fit(trainer, None)
    assert isinstance(trainer.method, Taught)
    return trainer.method


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_one_is_read_measured_and_remembered(
    kind: str, there: Path, network: nn.Module, tmp_path: Path
) -> None:
    method = begun(tmp_path / "mine", *named(there / kind))
    x = torch.rand(5, 1, 8, 8)
    method.teacher.to(memory_format=torch.contiguous_format)  # as the reference, so that sums are in one order
    torch.testing.assert_close(method.teacher(x), network(x), rtol=0, atol=1e-6)
    (stage,) = (tmp_path / "mine" / "stages").iterdir()
    status = json.loads((stage / "status.json").read_text())
    figures = status["teacher"]
    assert figures["clean"]["accuracy"] > 0.8 > figures["pgd"]["accuracy"]
    assert figures["steps"] == 10 and figures["eps"] == pytest.approx(51 / 255) and figures["n"] == 16
    assert status["sha256"][:8] == stage.name.rpartition("-")[2]
    assert "a teacher: clean " in _stage_line(read_run(stage))


def test_what_is_measured_is_said_and_chance_under_attack_is_warned_about(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "mine", *named(there / "run"))
    said = capsys.readouterr().err
    assert "teacher  clean " in said and "of 16 held-out images" in said
    assert "warning: teacher: is at chance under PGD-10" in said


def test_a_teacher_of_clean_accuracy_alone_is_not_warned_about(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"teacher": Stage(checkpoint=str(there / "run"), best=True, teaches="clean")}
    monkeypatch.setattr(Taught, "pretraining", lambda self: stage)
    begun(tmp_path / "mine", *named(there / "run"))
    assert "teacher  clean " in (said := capsys.readouterr().err) and "warning" not in said


def test_a_trained_one_is_measured_when_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And refused at chance, before its student has a step."""
    cfg = resolved(*WORDS, "train.epochs=2", "method.teacher=['train.epochs=1']")
    with pytest.raises(
        DataError, match=r"stage teacher: stages/teacher-\w{8} — is not better than chance.*train it lon"
    ):
        monkeypatch.setattr(teachers, "above_chance", lambda figures, classes: False)
        begun_run(cfg, tmp_path / "mine")
    assert list((tmp_path / "mine" / "stages").glob("teacher-*/checkpoints/last.pt"))


def begun_run(cfg: DictConfig, folder: Path) -> None:
    run = Run(cfg, digits(), ALONE, SignalFlag(), folder)
    set_status(folder, state="running")
    run.fit(run.build_trainer(fresh=True), None)


def altered(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write_again(there: Path) -> None:
        state = {key: value.clone() for key, value in torch.load(there / "weights.pth")["state_dict"].items()}
        change(state)
        torch.save(state, there / "weights.pth")

    return write_again


def exported(**changes: Any) -> Callable[[Path], None]:
    def write_again(there: Path) -> None:
        path = there / "export" / "config.json"
        write_json(path, {**json.loads(path.read_text()), **changes})

    return write_again


MODEL = "stages.conv1.weight"
FOREIGN = {"_target_": "os.system", "command": "touch here"}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("weights.pth", altered(lambda s: s["module.head.weight"].zero_()), "is not better than chance: "),
        ("weights.pth", altered(lambda s: s["module.head.weight"].fill_(torch.inf)), "its logits are NaN or infinite"),
        ("weights.pth", altered(lambda s: s["module.head.weight"].fill_(torch.nan)), "values are NaN"),
        ("weights.pth", altered(lambda s: s.update({"module.head.weight": torch.ones(3, 8)})), "head.weight is"),
        ("export", exported(classes=["a", "b"]), r"is for 2 classes of \(1, 8, 8\), and digits has 10"),
        ("export", exported(input={"shape": [3, 32, 32]}), r"is for 10 classes of \(3, 32, 32\)"),
        ("export", exported(model=FOREIGN), "chooses no code beside atbench's own"),
        ("export", exported(model={"_target_": "atbench.models.cnn.CNN", "width": "${oc.env:HOME}"}), "not look up"),
        ("export", exported(model=[]), "is damaged, or not what `atbench export` writes"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_refused_before_there_is_a_folder(
    kind: str, change: Callable[[Path], None], said: str, there: Path, tmp_path: Path
) -> None:
    change(there)
    with pytest.raises(AtbenchError, match=said):
        begun(tmp_path / "mine", *named(there / kind))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt"])
def test_a_file_of_weights_needs_the_name_of_its_network(name: str, there: Path, tmp_path: Path) -> None:
    shutil.copy(there / "weights.pth", there / "weights.pt")
    with pytest.raises(
        DataError, match=r"does not say for which network it is; name the network: method\.teacher_model="
    ):
        begun(tmp_path / "mine", f"method.teacher={there / name}")
    with pytest.raises(DataError, match="there is no such file of weights"):
        begun(tmp_path / "mine", *named(there / "nowhere.pth"))


@pytest.mark.parametrize("kind", ["export", "weights.pth"])
def test_another_teacher_is_refused_where_a_run_goes_on(kind: str, there: Path, tmp_path: Path) -> None:
    words = named(there / kind)
    begun(tmp_path / "mine", *words)
    begun(tmp_path / "mine", *words)
    file = there / kind / "model.safetensors" if kind == "export" else there / kind
    if kind == "export":
        node = json.loads((there / "export" / "config.json").read_text())["model"]
        exported(model={**node, "activation": "relu"})(there)
        with pytest.raises(DataError, match=r"stage teacher: .* builds another network than this run began with"):
            begun(tmp_path / "mine", *words)
        exported(model=node)(there)
    if kind == "export":
        state = {key: value + 0 for key, value in load_file(file).items()}
        state["head.bias"] += 1
        save_file(state, file)
    else:
        altered(lambda state: state["module.head.bias"].add_(1))(there)
    with pytest.raises(DataError, match=r"stage teacher: .* is another checkpoint than this run began with"):
        begun(tmp_path / "mine", *words)


def test_words_of_a_stage_choose_no_code_that_the_line_does_not_name() -> None:
    """They may have come with the configuration of a run that goes on."""
    stage = Stage({"_target_": "atbench.methods.pgd_at.PgdAt"}, overrides=("model._target_=theirs.Net",))
    with pytest.raises(ConfigError, match=r"model\._target_: theirs\.Net .*chooses no code"):
        stage_config(resolved(*WORDS), stage)
