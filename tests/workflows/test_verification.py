"""`atbench eval verify=`: one line and exit 3 for whatever was edited in a folder; exit 0 for what was not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from atbench.cli.main import main
from atbench.reporting import report

CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
AGAIN = "model._target_=verified_net.net"
WORDS = (
    AGAIN, "dataset=digits", "name=x", "eval=standard", "eval.limit=40", "eval.steps=[1,3]",
    "eval.eps_grid=[0,1]", "eval.eps_steps=2", "eval.audit=4", "attack=fmn", "attack.steps=5", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an evaluation, and the code of its network beside it."""
    path = tmp_path_factory.mktemp("made")
    (path / "verified_net.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(report, "write_report", lambda folder, every_format: None)
        patch.delenv("ATBENCH_TRUSTED", raising=False)
        assert main(["eval", *WORDS]) == 0
    (folder,) = (path / "runs").iterdir()
    folder.rename(path / "runs" / "made")
    sys.modules.pop("verified_net", None)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(report, "write_report", lambda folder, every_format: None)
    monkeypatch.delenv("ATBENCH_TRUSTED", raising=False)
    yield tmp_path / "copy" / "runs" / "made"
    sys.modules.pop("verified_net", None)


def verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["eval", f"verify={folder}", AGAIN])
    return code, capsys.readouterr().err.splitlines()


def record(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        content = json.loads((place / "net.json").read_text())
        change(content)
        (place / "net.json").write_text(json.dumps(content))

    return edit


def arrays(which: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        with np.load(place / which) as kept:
            content = {name: kept[name] for name in kept.files}
        change(content)
        np.savez(place / which, **content)

    return edit


def swap(content: dict[str, Any]) -> None:
    content["robust"] = content["clean"]


def nan(content: dict[str, Any]) -> None:
    content["pgd.0.x_adv"][0, 0, 0, 0] = np.nan


def settings(place: Path) -> None:
    content = yaml.safe_load((place / "net.yaml").read_text())
    content["eval"]["eps_steps"] = 5
    (place / "net.yaml").write_text(yaml.safe_dump(content))


EDITS = {
    "a swapped mask": arrays("net.npz", swap),
    "a relabelled eps": record(lambda content: content["threat"].update(eps=0.4)),
    "a relabelled norm": record(lambda content: content["threat"].update(norm="l2")),
    "a relabelled k": record(lambda content: content["steps"][1].update(k=100)),
    "an edited interval": record(lambda content: content["robust"].update(low=0.9)),
    "an edited verdict": record(lambda content: content["audit"].update(trusted=not content["audit"]["trusted"])),
    "an edited check": record(lambda content: content["audit"]["checks"][0].update(value=0.5)),
    "a NaN in a kept image": arrays("net.examples.npz", nan),
    "another n": record(lambda content: content.update(n=39)),
    "another split": record(lambda content: content.update(split="train")),
    "a distance": record(lambda content: content["attacks"][0]["distance"].update(median=9.0)),
    "a class": record(lambda content: content["classes"]["classes"][0].update(accuracy=0.5)),
    "a key less": record(lambda content: content.pop("bound")),
    "an array less": arrays("net.examples.npz", lambda content: content.pop("fmn.rows")),
    "no record": lambda place: (place / "net.json").write_text("[]"),
    "half a configuration": lambda place: (place / "net.yaml").write_text("eval: {"),
    "half an archive": lambda place: (place / "net.npz").write_bytes((place / "net.npz").read_bytes()[:500]),
}


def test_what_nobody_touched_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", f"verify={folder}", AGAIN]) == 0
    said = capsys.readouterr().out
    assert "DIFFERS" not in said and "values and arrays agree" in said and "compared with a second copy only" in said


@pytest.mark.parametrize("how", EDITS)
def test_what_was_edited_is_one_line_and_exit_3(how: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EDITS[how](folder / "evaluation")
    code, said = verify(folder, capsys)
    assert code == 3 and len(said) == 1 and said[0].startswith("error: verify"), (how, said)


def test_settings_that_were_edited_beside_the_record_are_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(folder / "evaluation")
    code, said = verify(folder, capsys)
    assert code == 3 and "plan.eps_steps" in said[-1]


@pytest.mark.slow
def test_a_short_evaluation_leaves_the_record_where_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its own stands beside it, named, complete and verified too."""
    before = (folder / "evaluation" / "net.json").read_text()
    short = ("eval=smoke", "eval.limit=20", "attack=pgd", "attack.steps=2", "threads=1")
    assert main(["eval", str(folder), AGAIN, *short]) == 0
    assert (folder / "evaluation" / "net.json").read_text() == before
    beside = json.loads((folder / "evaluation" / "smoke-n20" / "net.json").read_text())
    assert beside["name"] == "smoke-n20" and beside["n"] == 20 and beside["of"] == 450
    assert verify(folder, capsys)[0] == 0
    assert main(["eval", str(folder), AGAIN, *short, "eval.name=earlier"]) == 2
    assert main(["eval", str(folder), AGAIN, *short, "eval.name=../x"]) == 2


def test_a_long_attack_says_how_far_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atbench.reporting import progress

    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert main(["eval", str(folder), AGAIN, "eval=smoke", "eval.limit=20", "threads=1"]) == 0
    said = capsys.readouterr().err
    assert "net  attack 3/3 noise, 0 of 2 images\n" in said
    monkeypatch.setattr(progress, "SECONDS", 3600.0)
    assert main(["eval", str(folder), AGAIN, "eval=smoke", "eval.limit=20", "threads=1"]) == 0
    assert "attack 3/3" not in capsys.readouterr().err


def test_a_configuration_beside_a_record_chooses_no_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder / "evaluation" / "net.yaml"
    Path("verified_evil.py").write_text("open('ran', 'w').close()\n\ndef make(norm, eps):\n    return None\n")
    content = yaml.safe_load(place.read_text())
    content["eval"]["attacks"]["fmn"] = {"_target_": "verified_evil.make"}
    place.write_text(yaml.safe_dump(content))
    code, said = verify(folder, capsys)
    assert code == 2 and "eval.attacks.fmn._target_: verified_evil.make" in said[-1] and not Path("ran").exists()
    content["eval"]["attacks"], content["dataset"]["source"]["more"] = {}, "${oc.env:HOME}"
    place.write_text(yaml.safe_dump(content))
    code, said = verify(folder, capsys)
    assert code == 2 and "does not look up values of this machine" in said[-1]
