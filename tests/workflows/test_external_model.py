"""Anybody's network: attacked without a run, in a folder that explains itself, goes on and can be checked; refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from atbench.cli.main import main
from atbench.data.digits import digits
from atbench.evaluation import result_cache
from atbench.models import CNN
from atbench.reporting import report

CODE = """
import torch
from torch import nn

def make_model(width=6, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))

class Net(nn.Module):
    def __init__(self, answer="logits", channels=1):
        super().__init__()
        self.answer, self.conv, self.fc = answer, nn.Conv2d(channels, 2, 3), nn.Linear(72, 10)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x):
        out = self.fc(self.conv(x).flatten(1))
        answers = {"logits": out, "pair": (out, out), "map": out[:, :, None, None], "cut": out.detach()}
        return answers[self.answer]

def trained():
    torch.manual_seed(7)
    return make_model()

def empty():
    return nn.Flatten()
"""
LIMITS = (
    "eval=standard", "eval.limit=40", "eval.steps=[1,3]", "eval.eps_grid=[0,1]", "eval.eps_steps=2", "eval.audit=0",
    "threads=1",
)  # fmt: skip
AGAIN = "model._target_=foreign_mine.make_model"  # a folder names code, and only a line has it run
MINE = (AGAIN, "dataset=digits")


def evaluate(*words: str) -> int:
    return main(["eval", *words, *LIMITS])


@cache
def mlp(width: int = 6, classes: int = 10) -> nn.Sequential:
    """What `make_model` makes, trained a little."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))
    train, optimizer = digits().train, torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(train.floats()), train.y).backward()
        optimizer.step()
    return network


def only(parent: Path) -> Path:
    (found,) = (parent / "runs").iterdir()
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def figures(path: Path) -> Any:
    """A record without what a clock measured."""
    return {key: value for key, value in read(path).items() if key != "seconds"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of somebody's, in which the network in x.pt has been evaluated."""
    path, before = tmp_path_factory.mktemp("theirs"), Path.cwd()
    os.chdir(path)
    (path / "foreign_mine.py").write_text(CODE)
    torch.save({"state_dict": {f"module.{k}": v for k, v in mlp().state_dict().items()}, "epoch": 3}, "x.pt")
    assert evaluate(*MINE, "checkpoint=x.pt", "seed=3") == 0
    os.chdir(before)
    sys.modules.pop("foreign_mine", None)
    yield path


@pytest.fixture
def theirs(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder, as the current one."""
    path = tmp_path / "copy"
    shutil.copytree(evaluated, path)
    text = (only(path) / "config.yaml").read_text()
    (only(path) / "config.yaml").write_text(text.replace(str(evaluated), str(path)))
    monkeypatch.chdir(path)
    for name in ("RANK", "WORLD_SIZE", "ATBENCH_TRUSTED"):
        monkeypatch.delenv(name, raising=False)
    yield path
    sys.modules.pop("foreign_mine", None)


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reports, whose pictures take the most time."""
    monkeypatch.setattr(report, "write_report", lambda folder, every_format: None)


def test_a_folder_that_explains_itself(theirs: Path) -> None:
    folder = only(theirs)
    assert folder.name.endswith("-eval-digits-x") and not (folder / "lock").exists()
    status, config = read(folder / "status.json"), yaml.safe_load((folder / "config.yaml").read_text())
    assert status["state"] == "done" and "epoch" not in status
    assert config["checkpoint"] == str(theirs / "x.pt") and config["attack"] == {"norm": "linf", "eps": 0.2}
    assert "checkpoint=x.pt" in (folder / "as_typed.yaml").read_text()
    assert read(folder / "environment.json")["parameters"] == 64 * 6 + 6 + 60 + 10
    for name in ("report.html", "pictures/x.png", "evaluation/x.npz", "evaluation/x.examples.npz"):
        assert (folder / name).is_file(), name
    report = (folder / "report.md").read_text()
    assert "foreign\\_mine.make\\_model" in report and "checkpoint was chosen" not in report and "(epoch" not in report
    assert not (folder / "evaluation" / "parts").exists()


def test_the_figures_are_those_of_the_weights(theirs: Path) -> None:
    record, arrays = read(only(theirs) / "evaluation" / "x.json"), np.load(only(theirs) / "evaluation" / "x.npz")
    test = digits().test().sample(40)
    right = mlp()(test.floats()).argmax(dim=1) == test.y
    assert record["clean"]["accuracy"] == right.double().mean() and (arrays["clean"] == right.numpy()).all()
    assert record["n"] == 40 and record["epoch"] is None and record["checkpoint"] == "x"
    assert record["plan"]["threat"]["seed"] == 3


def test_it_is_verified_where_the_file_is_and_where_it_went(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only(theirs)
    assert main(["eval", f"verify={folder}", AGAIN]) == 0
    Path("x.pt").rename("elsewhere.pt")
    capsys.readouterr()
    assert main(["eval", f"verify={folder}", AGAIN]) == main(["eval", str(folder), AGAIN]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "x.pt — does not exist any more; give its new path: checkpoint=FILE" in said[0]
    assert main(["eval", f"verify={folder}", "checkpoint=elsewhere.pt", AGAIN]) == 0
    torch.save(mlp()[1].state_dict(), "x.pt")
    assert main(["eval", str(folder), AGAIN]) == 3, "half of a network"
    torch.save({key: value + 1 for key, value in mlp().state_dict().items()}, "x.pt")
    capsys.readouterr()
    assert main(["eval", str(folder), AGAIN]) == 3
    assert "x.pt — holds other weights than were evaluated here" in capsys.readouterr().err
    assert read(folder / "status.json")["state"] == "done", "a refusal touches nothing"


def test_the_folder_again_is_the_same_evaluation(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only(theirs)
    before = figures(folder / "evaluation" / "x.json")
    assert main(["eval", str(folder), AGAIN]) == 0
    assert figures(folder / "evaluation" / "x.json") == before, "its own limit and seed, not the defaults"
    assert main(["eval", str(folder), AGAIN, *LIMITS, "eval.norm=l2", "eval.eps=1/2"]) == 0
    assert figures(folder / "evaluation" / "x.json") == before, "another evaluation has a place of its own"
    after = read(folder / "evaluation" / "standard-n40" / "x.json")
    assert after["threat"] == {"norm": "l2", "eps": 0.5} and after["plan"]["threat"]["seed"] == 3
    assert main(["eval", f"verify={folder}", AGAIN]) == main(["report", str(folder), str(folder), "--json"]) == 0
    assert len(list((folder / "evaluation" / "earlier").glob("*.json"))) == len(list((theirs / "runs").iterdir())) == 1
    assert "L2, ε = 0.5" in (folder / "report.md").read_text()
    refused = main(["eval", str(folder), "dataset=mnist"])
    assert refused == 2 and "dataset: given with a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("unreported")
def test_what_was_interrupted_goes_on(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = read(only(theirs) / "evaluation" / "x.json")
    shutil.rmtree(theirs / "runs")
    written, measured = result_cache._write_part, result_cache._measure_batch
    batches: list[int] = []

    def counted(eval_model: Any, batch: Tensor, work: Any) -> Any:
        batches.append(len(batch))
        return measured(eval_model, batch, work)

    def stopped(*part: Any) -> None:
        written(*part)
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(result_cache, "_measure_batch", counted)
    monkeypatch.setattr(result_cache.ResultCache, "SECONDS", 0.0)
    monkeypatch.setattr(result_cache, "_write_part", stopped)
    assert evaluate(*MINE, "checkpoint=x.pt", "seed=3", "eval.batch_size=16") == 143
    folder = only(theirs)
    assert "stopped by SIGTERM; go on with `atbench eval runs/" in capsys.readouterr().err
    assert read(folder / "status.json")["state"] == "interrupted" and not (folder / "lock").exists()
    monkeypatch.setattr(result_cache, "_write_part", written)
    assert main(["eval", str(folder), AGAIN]) == 0
    assert read(folder / "status.json")["state"] == "done"
    again = read(folder / "evaluation" / "x.json")
    assert sum(batches[:3]) == 40, "the clean pass was made"
    assert sum(batches[3:]) == again["clean"]["accuracy"] * 40, "and not again: only PGD, on what is right"
    for key in ("clean", "steps", "eps", "robust", "plan", "weights_sha256"):
        assert again[key] == undisturbed[key], key


@pytest.mark.usefixtures("unreported")
def test_options_names_and_modules(theirs: Path) -> None:
    shutil.rmtree(theirs / "runs")
    torch.save(mlp(width=3).state_dict(), "narrow.pt")
    assert evaluate(*MINE, "model.width=3", "checkpoint=narrow.pt", "name=narrow") == 0
    narrow = only(theirs)
    assert narrow.name.endswith("-eval-narrow")
    module = ("model=module", "model.module._target_=foreign_mine.make_model", "model.module.width=3", "dataset=digits")
    assert evaluate(*module, "checkpoint=narrow.pt", "name=module") == 0
    (wrapped,) = (theirs / "runs").glob("*-eval-module")
    records = [read(path / "evaluation" / "narrow.json") for path in (narrow, wrapped)]
    source, test = digits(), digits().test().sample(40)
    x = (test.floats() - source.mean[0]) / source.std[0]
    right = mlp(width=3)(x).argmax(dim=1) == test.y
    assert records[1]["clean"]["accuracy"] == right.double().mean(), "the module sees normalised pixels"
    assert records[0]["weights_sha256"] != records[1]["weights_sha256"]


@pytest.mark.usefixtures("unreported")
def test_networks_of_ours_and_networks_with_weights_of_their_own(theirs: Path) -> None:
    shutil.rmtree(theirs / "runs")
    source = digits()
    facts: dict[str, Any] = {"shape": source.shape, "classes": 10, "mean": source.mean, "std": source.std}
    torch.manual_seed(5)
    network = CNN(**facts, width=4).eval()
    torch.save({"model": network.state_dict()}, "ours.pt")
    assert evaluate("model=cnn", "model.width=4", "dataset=digits", "checkpoint=ours.pt") == 0
    record = read(only(theirs) / "evaluation" / "ours.json")
    test = source.test().sample(40)
    right = network(test.floats()).argmax(dim=1) == test.y
    assert record["clean"]["accuracy"] == right.double().mean()
    shutil.rmtree(theirs / "runs")
    assert evaluate("model._target_=foreign_mine.trained", "dataset=digits") == 0
    assert (only(theirs) / "evaluation" / "trained.json").is_file()
    assert main(["eval", f"verify={only(theirs)}", "model._target_=foreign_mine.trained"]) == 0


NET = ("model._target_=foreign_mine.Net", "checkpoint=net.pt", "dataset=digits")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "eval: nothing — there is nothing to attack"),
        (("checkpoint=x.pt", "dataset=digits"), 2, "model: nothing — weights do not determine the network"),
        (("model._target_=foreign_mine.make_model", "checkpoint=x.pt"), 2, "dataset: nothing"),
        (("model.width=3", "checkpoint=x.pt", "dataset=digits"), 2, "model.width: given — no network is named"),
        (("model=cnn", "dataset=digits"), 2, "checkpoint: nothing — networks of atbench start at random"),
        ((*MINE, "checkpoint=absent.pt"), 3, "checkpoint: absent.pt — there is no such file"),
        ((*MINE, "checkpoint=foreign_mine.py"), 3, "cannot be opened as tensors alone"),
        ((*MINE, "checkpoint=x.pt", "model.widht=3"), 2, "did you mean 'width'?"),
        ((*MINE, "checkpoint=x.pt", "model.width=3"), 3, "1.weight is (6, 64) where the network has (3, 64)"),
        ((*MINE, "checkpoint=net.pt"), 3, "missing: 1.bias, 1.weight, 3.bias and 1 more; unexpected: conv.bias"),
        ((*MINE, "checkpoint=nan.pt"), 3, "weights: 3.bias — 10 of 10 values are NaN"),
        ((*MINE, "checkpoint=wide.pt", "model.classes=12"), 2, "gives 12 logits, and digits has 10 classes"),
        ((*NET[:1], NET[2], "model.channels=3"), 2, "cannot take the images of digits, 1×8×8 ("),
        ((*NET, "model.answer=pair"), 2, "returns a tuple; return the logits alone"),
        ((*NET, "model.answer=map"), 2, "answers one image with a tensor of (1, 10, 1, 1)"),
        ((*NET, "model.answer=cut"), 2, "gives logits without a gradient"),
        (("model._target_=foreign_mine.empty", "dataset=digits"), 2, "a network without parameters"),
        (("model._target_=os.getcwd", "dataset=digits"), 2, "a configuration may not build this"),
        ((*MINE, "checkpoint=x.pt", "eval.eps=8"), 2, "did you mean eval.eps=8/255?"),
        ((*MINE, "checkpoint=x.pt", "eval.norm=l3"), 2, "eval.norm: l3"),
        (("x.pt",), 3, "x.pt — is damaged: its checksum does not match; use another checkpoint; of another program"),
    ],
)
def test_refusals_say_why_and_leave_nothing(
    words: tuple[str, ...], code: int, said: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(theirs / "runs")
    sys.path.insert(0, str(theirs))
    try:
        import foreign_mine

        torch.save(foreign_mine.Net().state_dict(), "net.pt")
    finally:
        sys.path.remove(str(theirs))
        sys.modules.pop("foreign_mine", None)
    torch.save({**mlp().state_dict(), "3.bias": torch.full((10,), torch.nan)}, "nan.pt")
    torch.save(mlp(classes=12).state_dict(), "wide.pt")
    assert evaluate(*words) == code
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1, err
    assert not (theirs / "runs").exists()
