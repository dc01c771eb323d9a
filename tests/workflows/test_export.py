"""What is exported loads anywhere, bit by bit, says no more than the records hold, and is refused without a record."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors.torch import load_file

from atbench.cli.main import main
from atbench.config.instantiate import trust_folders
from atbench.data.digits import digits
from atbench.evaluation import weights_sha256
from atbench.reporting import leaderboard, model_card, report
from atbench.workflows import eval_plan, export
from atbench.workflows.resume import read_config

LIMITS = (
    "eval=standard", "eval.limit=40", "eval.steps=[1,3]", "eval.eps_grid=[0,1]", "eval.eps_steps=2", "eval.audit=0",
    "threads=1",
)  # fmt: skip
RUN = ("method=pgd_at", "logger=none", "model.width=4", "attack.steps=1", "train.epochs=1", "train.selection.n=20")
CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, widths=(4,), act=nn.ReLU, **rest):
        super().__init__()
        first = nn.Linear(64, widths[0])
        self.a, self.act, self.b = first, act(), nn.Linear(widths[0], classes)
        self.tied = first  # the same weights under another name

    def forward(self, x):
        return self.b(self.act(self.a(x.flatten(1))))
"""
NAMED = "model.module._target_=export_theirs.Net"  # a folder names code, and only a line has it run
NET = (
    "model=module", NAMED, "model.module.classes=10", "model.module.widths=[5]",
    "+model.module.act={_target_:torch.nn.LeakyReLU,_partial_:true,negative_slope:0.3}", "dataset=digits",
)  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run and with a foreign network that was evaluated."""
    path, before = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(path)
    (path / "export_theirs.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder, every_format: None)  # its pictures take the most time
        assert main(["train", *RUN, "runs=trained", *LIMITS]) == 0
        assert main(["eval", *NET, *LIMITS, "runs=foreign"]) == 0
    os.chdir(before)
    yield path
    sys.modules.pop("export_theirs", None)


@pytest.fixture(params=["trained", "foreign"])
def folder(request: pytest.FixtureRequest, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("ATBENCH_TRUSTED", str(made))
    (found,) = Path(request.param).iterdir()
    return found


def network_of(folder: Path) -> torch.nn.Module:
    trust_folders(Path.cwd())
    name = "best" if folder.parent.name == "trained" else "Net"
    path = folder / "checkpoints" / f"{name}.pt"
    return eval_plan.load_network(OmegaConf.create(read_config(folder)), digits(), torch.device("cpu"), path)[0].eval()


def test_it_loads_bit_by_bit_with_plain_python_and_is_the_same_to_us(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(folder), "--out", str(out), NAMED]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(list(out.iterdir())) == 4
    network, how = network_of(folder), read(out / "config.json")
    before = read(folder / "evaluation" / f"{how['checkpoint']}.json")
    state, tensors = network.state_dict(), load_file(out / "model.safetensors")
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) and tensors[key].dtype == state[key].dtype for key in state)
    assert how["weights_sha256"] == weights_sha256(network) and how["input"]["shape"] == [1, 8, 8]
    assert how["normalisation"]["mean"] == pytest.approx(list(digits().mean))

    monkeypatch.chdir(out)
    built: dict[str, Any] = {}
    exec(how["python"], built)
    x = digits().test().floats(slice(20))
    network.to(memory_format=torch.contiguous_format)  # as the file is, so that sums are in one order
    assert torch.equal(built["network"](x), network(x)) and built["logits"].shape == (1, 10)
    monkeypatch.setattr(report, "write_report", lambda folder, every_format: None)
    assert main([*shlex.split(how["command"])[1:], *LIMITS, "runs=again"]) == 0
    (again,) = Path("again").iterdir()
    record = read(again / "evaluation" / "model.json")
    assert record["weights_sha256"] == before["weights_sha256"] == how["weights_sha256"]
    for key in ("threat", "clean", "steps", "robust"):
        assert record[key] == before[key], key
    text = (out / "MODEL_CARD.md").read_text()
    assert how["python"] in text and how["command"] in text and "not audited" in text and "| 40 |" in text


def test_the_entry_holds_what_the_record_holds(folder: Path) -> None:
    assert main(["export", str(folder), NAMED]) == 0
    found = read(folder / "export" / f"{folder.name}.json")
    record = read(next((folder / "evaluation").glob("best.json" if "trained" in str(folder) else "Net.json")))
    assert found["clean_acc"] == f"{100 * record['clean']['accuracy']:.2f}"
    assert found["reported"] == f"{100 * record['robust']['accuracy']:.2f}"
    assert found["autoattack_acc"] is found["unreliable"] is found["link"] is None
    assert found["eps"] == "51/255" and found["dataset"] == "digits"
    assert "reported: upper bound: PGD-3 only, 95 % interval" in found["footnote"] and "40 images" in found["footnote"]
    assert found["additional_data"] is (False if folder.parent.name == "trained" else None)


def test_what_has_no_record_or_another_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = (made / "trained").iterdir()
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / "evaluation" / "best.json"
    path.write_text(json.dumps({**read(path), "weights_sha256": "0" * 64}))
    assert main(["export", "copy"]) == 3
    assert "best — is not what its record is of" in capsys.readouterr().err
    path.unlink()
    assert main(["export", "copy"]) == 3
    assert "has no evaluation of 'best'; first `atbench eval copy`" in capsys.readouterr().err
    assert main(["export", "copy", "--checkpoint", "last", "--out", "last"]) == 0
    assert read(tmp_path / "last" / "config.json")["checkpoint"] == "last"
    assert main(["export", "nowhere"]) == 3 and main(["export"]) == 2


def figure(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}


def record_of(norm: str = "linf", trusted: bool = True, **changes: dict[str, int]) -> dict[str, Any]:
    """A record in which PGD and AutoAttack's four ran, and one attack more after them."""
    effort: dict[str, dict[str, int]] = {
        "apgd_ce": {"steps": 100, "restarts": 1},
        "apgd_t": {"steps": 100, "targets": 9},
        "fab_t": {"steps": 100, "targets": 9},
        "square": {"steps": 5000},
        "noise": {"eot_samples": 10},
    }
    attacks = [
        {"name": name, "after": figure(0.5 - place / 100), "alone": None,
         "settings": {"_target_": "atbench.attacks.x.X", "norm": norm, **settings, **changes.get(name, {})}}
        for place, (name, settings) in enumerate(effort.items())
    ]  # fmt: skip
    check = {"name": "gradients", "verdict": "pass" if trusted else "flag", "sentence": "they vanish"}
    said = "all is well" if trusted else "do not cite"
    return {
        "threat": {"norm": norm, "eps": 8 / 255}, "plan": {"sequential": True},
        "n": 100, "split": "test", "bound": "upper", "epoch": 3, "checkpoint": "best",
        "clean": figure(0.8), "attacks": attacks, "steps": [], "norms": {},
        "robust": {**figure(0.46), "attacks": list(effort), "eight_bit": figure(0.47)},
        "weights_sha256": "w", "data_sha256": "d",
        "audit": {"trusted": trusted, "flags": [], "sentence": said, "checks": [check]},
    }  # fmt: skip


def test_autoattack_is_what_ran_in_full() -> None:
    found = leaderboard.leaderboard_entry({}, record_of(), "x")
    assert (found["autoattack_acc"], found["reported"], found["eps"]) == ("47.00", "46.00", "8/255")
    assert found["unreliable"] is False
    for short in ({"square": {"steps": 1000}}, {"apgd_t": {"targets": 3}}, {"fab_t": {"steps": 20}}):
        assert leaderboard.leaderboard_entry({}, record_of(**short), "x")["autoattack_acc"] is None
    missing = record_of()
    missing["attacks"] = missing["attacks"][1:]
    assert leaderboard.after_autoattack(missing) is None
    assert "AutoAttack (standard), noise" in found["footnote"]


def test_an_untrusted_evaluation_says_so_first() -> None:
    how = {
        "dataset": "cifar10", "model": {"_target_": "a.B"}, "parameters": 5, "input": {"shape": [3, 32, 32]},
        "classes": ["a"], "python": "pass", "command": "atbench eval",
    }  # fmt: skip
    record = record_of(trusted=False)
    found = leaderboard.leaderboard_entry({}, record, "x")
    assert found["unreliable"] is True and "do not cite" in found["footnote"]
    first, second = model_card.build_model_card({}, record, how).blocks[:2]
    assert "do not cite" in str(first) and type(first).__name__ == type(second).__name__ == "Notice"
    assert "they vanish" in str(second)


@pytest.mark.parametrize(
    "value",
    [1, 1e-05, 0.1, True, None, "relu", "8", "1e3", "null", "Nan", "it's", "a b,c", "back\\", "", [1, "2", [None]],
     {"_target_": "a.B", "c": [0.5, "x y"], "d": {}}],
)  # fmt: skip
def test_values_survive_the_command_line(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"++model.a={export._word(value)}"])
    again = override.value()
    assert again == value and type(again) is type(value)
