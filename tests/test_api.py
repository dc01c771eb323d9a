"""The Python interface: the numbers of the command line, whatever the module, and the module as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atbench
from atbench.attacks import ball
from atbench.cli.main import main
from atbench.data.digits import digits
from atbench.errors import ConfigError, DataError
from atbench.evaluation.attack_runner import legal
from atbench.interval import wilson

EPS = 0.06
CODE = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10))
"""
MINE = "model._target_=api_mine.make_model"
QUIET = ("eval.steps=[]", "eval.eps_grid=[]", "eval.audit=0", "threads=1", f"eval.eps={EPS}")


def untrained() -> nn.Sequential:
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    return namespace["make_model"]()


@cache
def fitted() -> nn.Sequential:
    """A network of nobody's, trained a little, in eval mode."""
    torch.manual_seed(1)
    network, train = untrained(), digits().train
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(train.floats()), train.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


@pytest.fixture
def model() -> nn.Sequential:
    return copy.deepcopy(fitted())


@cache
def data(n: int | None = None) -> tuple[Tensor, Tensor]:
    test = digits().test()
    return test.floats()[:n], test.y[:n]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, trained from Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("api"))
        quick = ("model.width=4", "train.epochs=1", "train.selection.n=20", "attack.steps=2", "eval.limit=null")
        yield atbench.train(["method=pgd_at", *quick, "eval=smoke", "logger=none", "threads=1", "name=mine"])


# The numbers of the command line.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        ("pgd", {}),
        ("pgd", {"steps": 3, "step_size": 0.03}),
        ("square", {"steps": 30}),
        ("apgd_ce", {"steps": 10}),
        ("feature", {"steps": 3, "targets": 3}),
    ],
    ids=str,
)
def test_the_mask_is_that_of_the_command_line(
    attack: str, settings: dict[str, Any], model: nn.Module, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "api_mine", raising=False)
    (here / "api_mine.py").write_text(CODE)
    torch.save(model.state_dict(), here / "weights.pt")
    # There a step size is of the data set's eps, and is scaled with it.
    typed = {**settings, "step_size": 0.1} if "step_size" in settings else settings
    words = [f"attack={attack}", *(f"attack.{key}={value}" for key, value in typed.items())]
    assert main(["eval", MINE, "checkpoint=weights.pt", "dataset=digits", "seed=3", *QUIET, *words]) == 0
    (folder,) = (here / "runs").iterdir()
    with np.load(folder / "evaluation" / "weights.npz") as record:
        expected = record["robust"]
    result = atbench.robust_accuracy(model, *data(), attack, eps=EPS, seed=3, **settings)
    assert np.array_equal(result.mask.numpy(), expected) and 0 < expected.sum() < len(expected)
    with pytest.raises(ConfigError, match=r"model\._target_=api_mine\.make_model"):
        atbench.load(folder)
    again = atbench.load(folder, overrides=[MINE])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_train_load_and_measure_what_the_run_has_measured(run: Path) -> None:
    assert run.is_absolute() and run.parent.name == "runs" and run.name.endswith("mine")
    network = atbench.load(run)
    assert not network.training and all(parameter.requires_grad for parameter in network.parameters())
    result = atbench.robust_accuracy(network, *data(), "smoke", eps=0.2)
    with np.load(run / "evaluation" / "best.npz") as record:
        assert np.array_equal(result.mask.numpy(), record["robust"]) and np.array_equal(record["label"], data()[1])
    assert result.attacks == ("pgd", "fgsm", "noise")
    with pytest.raises(DataError, match="nothing"):
        atbench.load("nothing")


def test_autoattack_is_its_four_attacks(model: nn.Module) -> None:
    """In a ball that leaves nothing after the first, so that the others cost nothing."""
    x, y = data(40)
    result = atbench.robust_accuracy(model, x, y, "autoattack", eps=0.5)
    assert result.attacks == ("apgd_ce", "apgd_t", "fab_t", "square") and float(result) == 0.0 < result.high
    x_adv = atbench.attack(model, x, y, "autoattack", eps=0.5)
    assert legal(x, x_adv, "linf", 0.5).all() and not (model(x_adv).argmax(dim=1) == y).any()


# What is returned.


def test_the_result_is_a_figure_with_its_interval(model: nn.Module) -> None:
    x, y = data(90)
    result = atbench.robust_accuracy(model, x, y, "pgd", norm="l2", eps=0.3, steps=1)
    right = int(result.mask.sum())
    assert float(result) == result.accuracy == right / 90 and (result.low, result.high) == wilson(right, 90)
    assert result.clean == float((model(x).argmax(dim=1) == y).double().mean()) and result.n == 90
    assert not (result.mask & (model(x).argmax(dim=1) != y)).any()
    assert f"{100 * result.accuracy:.1f} %" in str(result) and "pgd" in str(result)
    assert any("cannot reach the edge" in warning for warning in result.warnings)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_accuracy_on_x_adv_is_robust_accuracy(norm: str, model: nn.Module) -> None:
    x, y = data()
    eps = {"linf": EPS, "l2": 0.35, "l1": 1.5}[norm]
    x_adv = atbench.attack(model, x, y, "pgd", norm=norm, eps=eps)
    right, clean = model(x_adv).argmax(dim=1) == y, model(x).argmax(dim=1) == y
    assert torch.equal(right, atbench.robust_accuracy(model, x, y, "pgd", norm=norm, eps=eps).mask)
    assert 0 < int(right.sum()) < int(clean.sum()) and legal(x, x_adv, norm, eps).all()
    moved = ball(norm).norm(x_adv - x) > 0
    assert torch.equal(moved, clean), "what is wrong without an attack stays, and everything else is attacked"


@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_batches_move_nothing_and_the_seed_everything(attack: str, model: nn.Module) -> None:
    x, y = data(60)
    x, network = x.double(), model.double()
    whole = atbench.attack(network, x, y, attack, eps=EPS, steps=5)
    parts = atbench.attack(network, x, y, attack, eps=EPS, steps=5, batch_size=7)
    assert whole.dtype == torch.float64 and torch.allclose(whole, parts, rtol=0, atol=1e-12)
    masks = [atbench.robust_accuracy(network, x, y, attack, eps=EPS, steps=5, batch_size=size).mask for size in (7, 60)]
    assert torch.equal(*masks)
    assert torch.equal(whole, atbench.attack(network, x, y, attack, eps=EPS, steps=5, seed=0))
    assert not torch.allclose(whole, atbench.attack(network, x, y, attack, eps=EPS, steps=5, seed=1))


def test_half_precision_is_attacked_in_single(model: nn.Module) -> None:
    x, y = data(60)
    expected = atbench.robust_accuracy(model, x, y, "pgd", eps=EPS)
    network = copy.deepcopy(model).bfloat16()
    x_adv = atbench.attack(network, x, y, "pgd", eps=EPS)
    moved = (x_adv - x).abs().flatten(1).max(dim=1).values
    assert x_adv.dtype == torch.float32 and legal(x, x_adv, "linf", EPS).all() and moved.max() > EPS - 1e-6
    assert abs(float(atbench.robust_accuracy(network, x, y, "pgd", eps=EPS)) - float(expected)) <= 4 / 60


def test_pixels_between_grey_levels_stay_as_they_are(model: nn.Module) -> None:
    x, y = data(30)
    x = (0.9 * x + 0.0317).clamp(0, 1)
    assert torch.equal(atbench.attack(model, x, y, "pgd", eps=0.0), x)


# The model as it was.


class Awkward(nn.Module):
    """BatchNorm and dropout in modes of their own, a frozen layer, a buffer that every pass writes to, and a pass that
    fails."""

    def __init__(self, network: nn.Module, fails_at: int = -1) -> None:
        super().__init__()
        self.norm, self.network, self.dropout, self.fails_at = nn.BatchNorm2d(1), network, nn.Dropout(0.5), fails_at
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.train()
        self.network[2].eval()
        self.network[1].requires_grad_(False)

    def train(self, mode: bool = True) -> Awkward:
        super().train(mode)
        self.norm.train()  # its statistics move in eval mode as well
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.fails_at:
            raise RuntimeError("the third pass fails")
        return self.dropout(self.network(self.norm(x)))


def state(module: nn.Module) -> list[Any]:
    tensors = [value.clone() for value in module.state_dict().values()]
    flags = [(p.requires_grad, p.grad) for p in module.parameters()]
    return [tensors, flags, [each.training for each in module.modules()], torch.get_rng_state()]


@pytest.mark.parametrize("fails_at", [-1, 3])
def test_everything_is_put_back(fails_at: int, model: nn.Module) -> None:
    network = Awkward(model, fails_at)
    identity, (tensors, *before) = network.passes, state(network)
    for call in (atbench.attack, atbench.robust_accuracy):
        if fails_at > 0:
            with pytest.raises(RuntimeError, match="the third pass"):
                call(network, *data(20), "pgd", eps=EPS)
        else:
            call(network, *data(20), "pgd", eps=EPS)
        after, *rest = state(network)
        assert all(torch.equal(one, other) for one, other in zip(tensors, after, strict=True))
        assert rest[:2] == before[:2] and torch.equal(rest[2], before[2]) and network.passes is identity
    assert network.training and network.network[1].training and not network.network[2].training


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_a_block_without_gradients_does_no_harm(block: Any, model: nn.Module) -> None:
    x, y = data(40)
    expected = atbench.attack(model, x, y, "pgd", eps=EPS)
    with block():
        assert torch.equal(atbench.attack(model, x + 0, y, "pgd", eps=EPS), expected)
