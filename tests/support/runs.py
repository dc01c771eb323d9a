"""Short runs of the whole program, and what stands in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.training import checkpoint

QUICK = (
    "logger=none",
    "model.width=4",
    "attack.steps=2",
    "train.epochs=2",
    "train.selection.n=50",
    "train.selection.steps=2",
    "eval=smoke",
    "eval.limit=50",
    "eval.eps_steps=3",
    "eval.steps=[1,3]",
    "threads=1",
)
WORDS = ("train", *QUICK, "method=standard", "attack.eps=51/255")


def only(folder: Path) -> Path:
    (found,) = [path for path in (folder / "runs").iterdir() if path.name != "sweeps"]
    return found


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def final(path: Path) -> dict[str, Any]:
    return checkpoint.read(path / "checkpoints" / "last.pt")


def rows(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    timed = ("seconds", "examples_per_second", "attack_share")
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timed} for row in found]


def same_weights(a: Path, b: Path) -> bool:
    first, second = final(a)["method"], final(b)["method"]
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def contents(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}
