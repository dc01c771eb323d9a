"""`train.shard` on two CUDA devices; tests/training/test_sharding.py holds it to the replicated training on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atbench.training import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = (
    "method=trades",
    "model.width=16",
    "train.epochs=1",
    "eval=smoke",
    "eval.limit=64",
    "logger=none",
    "device=cuda",
)
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has fewer than two CUDA devices"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_devices_share_a_network(precision: str, tmp_path: Path) -> None:
    words = [f"train.precision.{part}={precision}" for part in ("attack", "update")]
    for name in ("true", "false"):
        command = ["--standalone", "--nproc-per-node=2", "-m", "atbench", "train", *WORDS, *words]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *command, f"train.shard={name}", f"runs={name}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    (shared,), (replicated,) = ([*(tmp_path / name).iterdir()] for name in ("true", "false"))
    assert json.loads((shared / "environment.json").read_text())["processes"] == 2
    ours, theirs = (checkpoint.read(run / "checkpoints" / "last.pt")["model"] for run in (shared, replicated))
    assert ours.keys() == theirs.keys() and all(torch.isfinite(value).all() for value in ours.values())
    assert all(value.shape == theirs[key].shape for key, value in ours.items())
