"""What the Python interface refuses: one line each, with the near miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atbench
from atbench.config import registry
from atbench.errors import ConfigError

X, Y = torch.linspace(0, 1, 5 * 64).view(5, 1, 8, 8), torch.arange(5)
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
EPS = 0.06


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attack": "pdg"}, r"^attack: pdg — .*; did you mean 'pgd'\?$"),
        ({"attack": "autoatack"}, "did you mean 'autoattack'"),
        ({"stpes": 5}, r"stpes: 5 — .*; did you mean 'steps'\?$"),
        ({"steps": "many"}, "steps: 'many'"),
        ({"steps": nn.ReLU()}, "^pgd: "),
        ({"attack": "autoattack", "steps": 5}, "^steps: 5 — autoattack is several attacks"),
        ({"norm": "Linf"}, "^norm: Linf — .*; did you mean 'linf'"),
        ({"attack": "foolbox", "norm": "l3"}, "^norm: l3"),
        ({"eps": 8}, "did you mean eval.eps=8/255"),
        ({"eps": -0.1}, "eps: -0.1"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"model": lambda x: x}, "^model: function — must be a torch.nn.Module"),
        ({"model": nn.Flatten()}, "has no parameters"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 10))}, "^model: Sequential — cannot take x, 1×8×8"),
        ({"x": X * 255}, r"^x: \[0, 255\] — must lie in \[0, 1\]"),
        ({"x": X * torch.nan}, "must lie in"),
        ({"x": (X * 255).byte()}, r"^x: torch.uint8 \(5, 1, 8, 8\) — must be a float tensor"),
        ({"x": X.flatten(1)}, r"\(N, C, H, W\)"),
        ({"x": X[:0], "y": Y[:0]}, r"\(0, 1, 8, 8\)"),
        ({"y": Y.int()}, "^y: torch.int32"),
        ({"y": Y[:4]}, r"^y: torch.int64 \(4,\) — must be int64 \(5,\)"),
        ({"y": Y + 10}, "^y: .* gives 10 logits; use 0 to 9"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("call", [atbench.attack, atbench.robust_accuracy])
@pytest.mark.every_pair("says", "call")
def test_what_cannot_be_attacked_is_refused(call: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        call(**{"model": MODEL, "x": X, "y": Y, "attack": "pgd", "eps": EPS, **changes})
    assert len(str(refused.value).splitlines()) == 1


def test_logits_without_a_gradient_are_refused_by_attacks_that_need_one() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MODEL

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).detach()

    with pytest.raises(ConfigError, match="without a gradient, and pgd needs one"):
        atbench.attack(Cut(), X, Y, "pgd", eps=EPS)
    assert atbench.robust_accuracy(Cut(), X, Y, "noise", eps=EPS, steps=2).n == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method=tradse"], "^method: tradse — .*; did you mean 'trades'"),
        (["method=trades", "attack.eps=8"], "attack.eps"),
        (["-m", "method=trades,mart"], "^overrides: --multirun"),
        ("method=trades", "must be a list of words"),
    ],
)
def test_a_training_raises_what_the_command_line_prints(words: Any, says: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        atbench.train(words)
    assert not list(here.iterdir())


def test_the_names_are_those_of_the_files() -> None:
    assert atbench.list_methods() == registry.options("method", [registry.conf_dir()])
    assert "apgd_t" in atbench.list_options("attacks")
    with pytest.raises(ConfigError, match="did you mean 'models'"):
        atbench.list_options("model")
    with pytest.raises(AttributeError, match="robust_acuracy"):
        atbench.robust_acuracy  # noqa: B018
