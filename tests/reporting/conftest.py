"""Run folders as docs/run_folder.md describes them, made without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.outcomes import STEPS, Made, MakeRun, write


@pytest.fixture(scope="session")
def run_maker() -> MakeRun:
    """`run_maker(folder, ...)`: as make_run, in a folder of the caller's."""
    return _make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, seed=0, robust=0.6, ...)`: a run folder under tmp_path. `evaluated`: more of `Made`, for both
    checkpoints; `last`: for the last one alone."""

    def make(name: str = "run", **given: Any) -> Path:
        return _make(tmp_path / name, **given)

    return make


def _make(
    folder: Path,
    *,
    seed: int = 0,
    method: str = "trades",
    robust: float = 0.6,
    last_robust: float | None = None,
    state: str = "done",
    message: str = "",
    checkpoints: tuple[str, ...] = ("best", "last"),
    train: dict[str, Any] | None = None,
    plus: dict[str, Any] | None = None,
    eps: float = 0.2,
    started: str = "2026-01-01T00:00:00",
    evaluated: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.pt").write_bytes(b"x" * 2048)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(seed, method, train, plus, eps)), encoding="utf-8")
    (folder / "as_typed.yaml").write_text(yaml.safe_dump({"argv": ["train", f"method={method}", f"seed={seed}"]}))
    environment = {
        "atbench": "0.1.0",
        "python": "3.11.7",
        "torch": "2.15.0",
        "device": "cpu",
        "threads": 2,
        "seed": seed,
    }
    environment |= {"parameters": 12345, "data_sha256": "d" * 64, "git": "abc1234"}
    (folder / "environment.json").write_text(json.dumps(environment))
    status = {"state": state, "exit_code": 0 if state == "done" else 4, "message": message, "epoch": 3, "epochs": 3}
    status |= {"started": started, "ended": started, "train_seconds": 100.0 + seed}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(_epoch(e, robust)) + "\n" for e in (1, 2, 3)))
    for name in checkpoints:
        share = robust if name == "best" or last_robust is None else last_robust
        more = {"robust": share, "seed": seed, "eps": eps, **(evaluated or {}), **((name == "last" and last) or {})}
        write(folder / "evaluation", name, 2 if name == "best" else 3, Made(**more))
    return folder


def _config(
    seed: int, method: str, train: dict[str, Any] | None, plus: dict[str, Any] | None, eps: float
) -> dict[str, Any]:
    about = {"name": method, "paper": "Zhang et al. 2019", "formula": "CE(f(x), y) + β · KL(f(x) ‖ f(x')) | <b>"}
    return {
        "seed": seed,
        "name": None,
        "runs": "runs",
        "dataset": {
            "about": {"name": "digits", "summary": "1797 images"},
            "source": {"_target_": "a.Digits", "seed": seed},
        },
        "model": {"about": {"name": "cnn"}, "_target_": "a.Cnn", "members": 1},
        "attack": {
            "about": {"name": "pgd"},
            "norm": "linf",
            "eps": eps,
            "step_size": 0.05,
            "steps": 10,
            "start": "uniform",
        },
        "method": {"about": about, "_target_": "a.Method", "beta": 6.0},
        "train": {
            "epochs": 3,
            "batch_size": 64,
            "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            "selection": {"by": "val.pgd", "steps": 10},
            **(train or {}),
        },
        "plus": plus or {},
        "eval": {"about": {"name": "standard"}, "steps": list(STEPS)},
    }


def _epoch(epoch: int, robust: float) -> dict[str, Any]:
    return {
        "event": "epoch", "epoch": epoch, "epochs": 3, "step": 18 * epoch, "fraction": epoch / 3, "seconds": 1.2,
        "examples_per_second": 980.0, "attack_share": 0.71, "lr": {"model": 0.1},
        "train": {"loss": 2.0 / epoch, "accuracy": 0.5 + 0.1 * epoch},
        "val": {"clean": 0.9 + 0.01 * epoch, "pgd": robust - 0.1 + 0.03 * epoch, "n": 150},
        "fit": {"pgd": robust + 0.04 * epoch, "n": 150}, "gap": 0.1 + 0.01 * epoch, "best": epoch < 3,
    }  # fmt: skip
