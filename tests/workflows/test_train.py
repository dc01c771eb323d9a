"""A whole run as a user starts it: what is printed, what is left in the folder, what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from atbench.cli.main import main
from atbench.data import Images, Source
from atbench.data.digits import digits
from atbench.training import World, checkpoint
from atbench.training.validation import Validation
from atbench.workflows import factory
from atbench.workflows.train import Run
from tests.support.runs import QUICK, final, only, read, rows, same_weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path


def train(*words: str) -> int:
    return main(["train", *QUICK, *words])


@pytest.mark.usefixtures("drawn")
def test_a_run_explains_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=trades", "attack.eps=51/255") == 0
    said = capsys.readouterr()
    for words in ("1,147 train", "parameters", "51/255", "CE(f(x), y) + β · KL", "PGD-2 on the held-out split"):
        assert words in said.err
    assert "upper bound" in said.out and "atbench eval" in said.out
    path = only(folder)
    assert read(path / "status.json")["state"] == "done"
    assert not (path / "lock").exists()
    assert yaml.safe_load((path / "config.yaml").read_text())["attack"]["eps"] == pytest.approx(0.2)
    assert "attack.eps=51/255" in (path / "as_typed.yaml").read_text()
    assert len(read(path / "environment.json")["data_sha256"]) == 64
    assert [row["epoch"] for row in rows(path)] == [1, 2]
    for name in ("report.md", "report.html", "pictures/best.png", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert (path / name).is_file(), name


def test_every_accuracy_is_the_mean_of_a_stored_mask(folder: Path) -> None:
    assert train("method=pgd_at") == 0
    for name in ("best", "last"):
        record = read(only(folder) / "evaluation" / f"{name}.json")
        outcomes = np.load(only(folder) / "evaluation" / f"{name}.npz")
        broken, clean = outcomes["broken_at"], outcomes["clean"]
        assert record["n"] == len(clean) == 50
        assert record["clean"]["accuracy"] == clean.mean()
        for step in record["steps"]:
            assert step["accuracy"] == ((broken == -1) | (broken > step["k"])).mean()
        for eps, mask in zip(record["eps"], outcomes["eps_robust"], strict=True):
            assert eps["accuracy"] == mask.mean()
        assert (outcomes["eps_robust"][0] == clean).all(), "eps = 0 is the clean accuracy, example by example"
        assert record["clean"]["low"] < record["clean"]["accuracy"] < record["clean"]["high"]
        assert record["bound"] == "upper"


@pytest.mark.slow
def test_test_data_is_read_by_evaluation_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one look at it before the first step: nothing of it is kept, and other pixels leave the same weights."""
    seen: list[weakref.ref[Images]] = []
    begun: list[bool] = []

    def sealed(cfg: Any) -> Source:
        source = real(cfg)
        object.__setattr__(source, "test", before_training)
        return source

    def before_training() -> Images:
        if begun:
            raise AssertionError("test data was read")
        images = digits().test()
        images = Images(255 - images.x, images.y.flip(0))
        seen.append(weakref.ref(images))
        return images

    def fit(self: Run, *given: Any) -> None:
        assert len(seen) == 1 and seen[0]() is None
        begun.append(True)
        fitted(self, *given)

    real, fitted = factory.make_source, Run.fit
    monkeypatch.setattr(Run, "evaluate", lambda self, names: [])
    monkeypatch.setattr(Run, "write_report", lambda self, trainer, records: None)
    assert train("method=rst", "plus=swa", "name=open") == 0
    monkeypatch.setattr(factory, "make_source", sealed)
    monkeypatch.setattr(Run, "fit", fit)
    assert train("method=rst", "plus=swa", "name=sealed") == 0
    assert same_weights(*(next((folder / "runs").glob(f"*-{name}")) for name in ("sealed", "open")))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    begun.clear()
    seen.clear()
    monkeypatch.setattr(factory, "make_source", sealed)
    monkeypatch.setattr(Run, "fit", fit)
    assert train("method=standard", "name=again") == 1


@pytest.mark.slow
def test_a_full_time_box_ends_with_75_and_goes_on_bit_identical(folder: Path) -> None:
    assert train("method=trades", "name=whole") == 0
    whole = only(folder)
    assert train("method=trades", "name=broken", "train.time_limit=1e-4") == 75
    broken = next(path for path in (folder / "runs").iterdir() if "broken" in path.name)
    assert read(broken / "status.json")["state"] == "interrupted"
    assert 0 < final(broken)["step"] + 35 * final(broken)["epoch"] < 70
    assert main(["train", f"resume={broken}", "train.time_limit=10"]) == 0
    assert same_weights(whole, broken)
    assert rows(whole) == rows(broken)
    first, second = (np.load(path / "evaluation" / "best.npz") for path in (whole, broken))
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=standard", "train.time_limit=1e-5") == 75
    path = only(folder)
    before = (path / "checkpoints" / "last.pt").read_bytes()
    assert main(["train", f"resume={path}", "train.epochs=7"]) == 2
    assert "train.epochs: 7 — the run has 2" in capsys.readouterr().err
    assert (path / "checkpoints" / "last.pt").read_bytes() == before
    assert main(["train", f"resume={path}", "train.time_limit=10"]) == 0
    assert main(["train", f"resume={path}"]) == 0
    assert f"{path} is done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=standard", "name=whole") == 0
    whole = only(folder)
    assert train("method=standard", "name=hurt", "train.time_limit=1e-3", "train.checkpoint.steps=1") == 75
    hurt = next(path for path in (folder / "runs").iterdir() if "hurt" in path.name)
    last = hurt / "checkpoints" / "last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    capsys.readouterr()
    assert main(["train", f"resume={hurt}", "train.time_limit=10"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "last.pt is damaged" in said and "last.prev.pt" in said
    assert same_weights(whole, hurt)


def test_a_loss_that_is_no_number_stops_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=pgd_at", "train.optimizer.lr=1e30") == 4
    path = only(folder)
    assert read(path / "status.json")["state"] == "diverged"
    assert "NaN or infinite" in capsys.readouterr().err
    assert not (path / "evaluation").exists()


def test_refusals_leave_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        (["attack.eps=8"], "attack.eps"),
        (["train.batch_size=5000"], "1147 images"),
        (["+method.bata=3"], "beta"),
        (["device=cuda"], "device"),
        (["model.norm=layer"], "model.norm"),
        (["method=yopo", "plus=awp"], "awp"),
    ):
        if "cuda" in words[0] and torch.cuda.is_available():
            continue
        assert train(*words) in (2, 5), words
        said = capsys.readouterr().err
        assert part in said and said.strip().splitlines()[-1].startswith("error: "), said
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_sweep_and_its_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "method=standard,pgd_at", "seed=0,1", "train.epochs=1") == 0
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    found = [path for path in sweep.iterdir() if (path / "status.json").is_file()]
    said = capsys.readouterr()
    assert len(found) == 4 and "job 4/4  method=pgd_at seed=1" in said.err, "in what it differs from the first"
    assert said.out.splitlines()[-1] == f"report  {sweep.relative_to(folder) / 'report' / 'report.html'}"
    assert (sweep / "report" / "report.html").is_file()
    assert main(["report", str(sweep), "--json"]) == 0
    compared = capsys.readouterr().out
    assert "pgd_at" in compared and "standard" in compared


@pytest.mark.slow
def test_eval_of_a_run_and_of_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=standard") == 0
    path = only(folder)
    before = read(path / "evaluation" / "best.json")
    again = ("eval=smoke", "eval.limit=50", "eval.steps=[1,3]", "eval.eps_steps=3", "threads=1")
    assert main(["eval", str(path), *again]) == 0
    after = read(path / "evaluation" / "best.json")
    for key in ("clean", "steps", "eps", "weights_sha256", "data_sha256"):
        assert before[key] == after[key], "the same evaluation gives the same record"
    assert read(path / "evaluation" / "earlier" / "best-1.json") == {**before, "outcomes": "best.npz"}
    assert main(["eval", str(path / "checkpoints" / "last.pt"), *again, "eval.restarts=2"]) == 0
    assert read(path / "evaluation" / "smoke-n50" / "last.json")["attack"]["restarts"] == 2
    assert main(["eval", str(folder)]) == 3
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("method=standard", "name=first", "train.optimizer.lr=0.02") == 0
    first = only(folder)
    weights = first / "checkpoints" / "last.pt"
    assert train("method=standard", "name=second", f"weights={weights}", "train.epochs=1", "train.optimizer.lr=0") == 0
    second = next(path for path in (folder / "runs").iterdir() if "second" in path.name)
    before, after = (checkpoint.read(path / "checkpoints" / "last.pt")["model"] for path in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))
    assert train("method=standard", "name=third", "weights=nowhere.pt") == 3
    assert train("method=standard", "name=third", f"weights={weights}", "model.width=8") == 3
    assert "has" in capsys.readouterr().err and not list((folder / "runs").glob("*third*"))


@pytest.mark.slow
def test_a_teacher_is_the_selected_epoch_where_the_method_asks_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out accuracy is made to fall, so that the first epoch is the best one."""
    measured, calls = Validation.figures, [0]

    def falling(validation: Validation, network: torch.nn.Module) -> dict[str, Any]:
        calls[0] += 1
        figures = measured(validation, network)
        return {**figures, "val": {**figures["val"], "pgd": 1 / calls[0]}}

    monkeypatch.setattr(Validation, "figures", falling)
    assert train("method=kd_swa") == 0
    learnt = final(only(folder))["method"]
    for name, chosen, other in (("robust", "best", "last"), ("standard", "last", "best")):
        (stage,) = (only(folder) / "stages").glob(f"{name}-*")
        teacher = learnt[f"teachers.{name}.network.head.weight"]
        kept = {which: checkpoint.read(stage / "checkpoints" / f"{which}.pt")["model"] for which in (chosen, other)}
        assert torch.equal(teacher, kept[chosen]["head.weight"])
        assert not torch.equal(teacher, kept[other]["head.weight"])


def test_a_folder_that_another_node_does_not_see_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(World, "agree", lambda self, flag: 1)
    assert train("method=standard") == 2
    assert "runs: runs — is not the same folder on all nodes" in capsys.readouterr().err
    assert list((folder / "runs").iterdir()) == []
