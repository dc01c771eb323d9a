"""The page on own methods, models and data sets works as it stands: its files are written out and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atbench.cli.main import main
from atbench.training import checkpoint

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
QUICK = ("logger=none", "attack.steps=2", "eval=smoke", "eval.limit=40", "threads=1")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder in an empty one."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"`(mine/[\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for name, text in blocks:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for module in ("mymethod", "mymodel", "mydata"):
        sys.modules.pop(module, None)
    return tmp_path


@pytest.mark.slow
def test_the_page_runs(mine: Path) -> None:
    words = ["method=half", "model=linear", "dataset=stripes", *QUICK]
    assert main(["train", "--config-dir", "mine/conf", *words]) == 0
    (run,) = (mine / "runs").iterdir()
    last = json.loads((run / "evaluation" / "last.json").read_text())
    assert last["clean"]["accuracy"] > 0.9 and last["attack"]["eps"] == pytest.approx(8 / 255)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["train"]["loss"] == pytest.approx((row["train"]["clean"] + row["train"]["adversarial"]) / 2)
    assert "weights.bias" in checkpoint.read(run / "checkpoints" / "last.pt")["model"]
    assert main(["eval", str(run), "--config-dir", "mine/conf", "eval=smoke", "eval.limit=40", "threads=1"]) == 0


@pytest.mark.slow
def test_own_and_ours_mix(mine: Path) -> None:
    assert main(["train", "--config-dir", "mine/conf", "method=trades", "model=linear", "dataset=stripes", *QUICK]) == 0
    words = ["method=half", "plus=awp", "train.epochs=1", "model.width=4", *QUICK]
    assert main(["train", "--config-dir", "mine/conf", *words]) == 0


def test_a_linear_model_breaks_exactly_where_the_closed_form_says(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["method=standard", "model=linear", "dataset=stripes", *QUICK, "attack.eps=0.15", "eval.steps=[20]"]
    assert main(["train", "--config-dir", "mine/conf", *words]) == 0
    (run,) = (mine / "runs").iterdir()
    state: dict[str, Tensor] = checkpoint.read(run / "checkpoints" / "last.pt")["model"]
    monkeypatch.syspath_prepend(str(mine / "mine"))
    import mydata  # type: ignore[import-not-found]

    test = mydata.stripes().test().sample(40)
    x, y = test.floats(dtype=torch.float64).flatten(1), test.y
    weight, bias = state["weights.weight"].double(), state["weights.bias"].double()
    gap = weight[y] - weight[1 - y]
    # Worst case of a linear model: every pixel moves ε against the gap, as far as the box lets it.
    room = torch.where(gap > 0, x, 1 - x).clamp(max=0.15)
    worst = (gap * x).sum(1) + bias[y] - bias[1 - y] - (gap.abs() * room).sum(1)
    record = json.loads((run / "evaluation" / "last.json").read_text())
    assert record["steps"][-1]["accuracy"] == pytest.approx(float((worst > 0).double().mean()))


def test_a_misspelt_option_of_mine_is_refused_with_the_near_miss(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config-dir", "mine/conf", "method=half", "+method.wieght=1", *QUICK]) == 2
    assert "did you mean 'weight'" in capsys.readouterr().err


def test_mine_is_listed(mine: Path) -> None:
    words = [sys.executable, "-m", "atbench", "list", "methods", "--json", "--config-dir", "mine/conf"]
    listed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert any(row["name"] == "half" for row in listed)
