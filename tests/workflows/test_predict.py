"""`atbench predict`: class, confidence, whether it holds, and an adversarial picture that says what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atbench.cli.main import main
from atbench.data.digits import digits
from atbench.data.picture import read_picture
from atbench.training import checkpoint
from atbench.workflows.eval_plan import load_run_network
from tests.support.runs import WORDS, enter, only


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose best checkpoint was trained here, in a second, and with pictures: a test digit that it
    has right, and the same enlarged and widened."""
    folder, data = tmp_path_factory.mktemp("predict"), digits()
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert main([*WORDS, "train.time_limit=1e-5"]) == 75
        path = only(folder) / "checkpoints" / "last.pt"
        network = load_run_network(str(path), data, torch.device("cpu")).train()
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(data.train.floats()), data.train.y).backward()
            optimizer.step()
        content = {**checkpoint.read(path), "model": network.state_dict(), "epoch": 1}
        checkpoint.save(path.with_name("best.pt"), content)
    with torch.no_grad():
        right = network.eval()(data.test().floats()).argmax(dim=1) == data.test().y
    pixels = data.test().x[int(right.long().argmax()), 0].numpy()
    Image.fromarray(pixels).save(folder / "digit.png")
    large = np.pad(np.kron(pixels, np.ones((8, 8), np.uint8)), ((0, 0), (16, 16)))
    Image.fromarray(large).convert("RGB").save(folder / "wide.png")
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(made, monkeypatch)
    return only(made)


def predicted(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["predict", str(run), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def logits(run: Path, picture: Path) -> torch.Tensor:
    pixels, _ = read_picture(picture, (1, 8, 8))
    with torch.no_grad():
        return load_run_network(str(run), None, torch.device("cpu"))(pixels[None].float() / 255)[0]


def test_class_confidence_and_the_adversarial_picture_are_the_networks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = predicted(capsys, here, "digit.png")
    own = logits(here, Path("digit.png")).softmax(dim=0)
    assert found["class"] == digits().classes[int(own.argmax())]
    assert found["confidence"] == pytest.approx(float(own.max()), abs=1e-5)
    assert (found["holds"], found["norm"], found["eps"], found["steps"]) == (False, "linf", 0.2, 3)
    wrong = found["adversarial"]
    assert wrong["picture"] == "digit.adv.png" and wrong["class"] != found["class"]
    before, after = (np.asarray(Image.open(name)).astype(int) for name in ("digit.png", "digit.adv.png"))
    assert before.shape == after.shape and 0 < abs(after - before).max() <= 51
    again = logits(here, Path("digit.adv.png")).softmax(dim=0)
    assert digits().classes[int(again.argmax())] == wrong["class"]
    assert wrong["confidence"] == pytest.approx(float(again.max()), abs=1e-5)


def test_nothing_is_found_and_written_without_a_radius(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = predicted(capsys, here, "digit.png", "--eps", "0", "--out", "none")
    assert found["holds"] and found["adversarial"] is None and not Path("none").exists()
    assert main(["predict", str(here), "digit.png", "--eps", "0"]) == 0
    assert "yes: PGD-3 in L∞" in capsys.readouterr().out


def test_another_size_is_scaled_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = predicted(capsys, here, "digit.png", "wide.png", "--out", "out")
    assert (second["width"], second["height"], second["input"]) == (96, 64, [1, 8, 8])
    assert first["class"] == second["class"] and Path("out/wide.adv.png").is_file()
    assert main(["predict", str(here), "wide.png", "--out", "out"]) == 0
    assert "96×64, scaled and its middle cut out: 8×8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.png"], 3, "picture: none.png — there is no such file"),
        (["text.png"], 3, "picture: text.png — cannot be decoded"),
        (["clear.png"], 3, "picture: clear.png — has transparent pixels"),
        (["digit.png", "--eps", "8"], 2, "eval.eps: 8 — pixels lie in [0, 1]"),
        (["digit.png", "--eps", "x"], 2, "--eps: x — is no number"),
        (["digit.png", "copy/digit.png", "--out", "out"], 2, "is where two pictures' answers would go"),
        (["digit.png", "--checkpoint", "epoch_9"], 3, "epoch_9.pt — there is no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    words: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("no picture")
    Image.new("RGBA", (8, 8)).save("clear.png")
    assert main(["predict", str(here), *words]) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
