"""Which key a mistyped one stands for."""

from __future__ import annotations

from typing import Any

import pytest

from atbench.config.near_keys import near_keys, suggestion

TREE: dict[str, Any] = {
    "seed": 0,
    "attack": {"_target_": "a.B", "eps": 0.1, "steps": 10, "about": {"paper": "x"}},
    "method": {"beta": 6.0},
    "train": {"epochs": 3, "optimizer": {"lr": 0.1}, "selection": {"steps": 5}, "batch_size": 32},
    "dataset": {"threat": {"eps": 0.1}, "train": {"epochs": 9}},
    "eval": {"steps": [1, 2], "eps": None, "attacks": {"square": {"steps": 5000}}},
}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lr", ["train.optimizer.lr"]),
        ("steps", ["attack.steps", "eval.steps", "train.selection.steps", "eval.attacks.square.steps"]),
        ("eps", ["attack.eps", "eval.eps", "dataset.threat.eps"]),
        ("epochs", ["train.epochs"]),
        ("train.steps", ["train.selection.steps"]),
        ("method.lr", ["train.optimizer.lr"]),
        ("optimizer.lr", ["train.optimizer.lr"]),
        ("trian.epochs", []),
        ("batch-size", ["train.batch_size"]),
        ("batchsize", ["train.batch_size"]),
        ("learning_rate", ["train.optimizer.lr"]),
        ("epsilon", ["attack.eps", "eval.eps", "dataset.threat.eps"]),
        ("seed", ["seed"]),
        ("paper", []),
        ("_target_", []),
        ("nothing", []),
    ],
)
def test_keys_by_their_last_name(key: str, near: list[str]) -> None:
    assert near_keys(TREE, key) == near


def test_what_is_suggested_is_written_out() -> None:
    assert suggestion(["train.optimizer.lr"], "0.1") == "write train.optimizer.lr=0.1"
    assert suggestion(["a", "b", "c", "d", "e"], None) == "write a=... (or b, c, d)"
