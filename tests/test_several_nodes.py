"""Two nodes as two starters of torchrun on this machine, which meet over the loopback device."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atbench.training import checkpoint

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
WORDS = (
    "method=pgd_at",
    "model.width=4",
    "attack.steps=1",
    "train.epochs=1",
    "train.selection.n=32",
    "eval=smoke",
    "eval.limit=32",
    "eval.checkpoints=[best]",
    "device=cpu",
    "threads=1",
    "logger=none",
)
PATIENCE = 240  # seconds, for a loaded machine


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def nodes(folders: tuple[Path, Path], *words: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each of two nodes with one process, each in its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    started = [start(folder, *meet, f"--node-rank={rank}", *words) for rank, folder in enumerate(folders)]
    said = [process.communicate(timeout=PATIENCE) for process in started]
    return [(process.returncode, *each) for process, each in zip(started, said, strict=True)]


def weights(folder: Path) -> dict[str, Tensor]:
    (run,) = (folder / "runs").iterdir()
    model: dict[str, Tensor] = checkpoint.read(run / "checkpoints" / "last.pt")["model"]
    return model


def test_two_nodes_train_and_evaluate_as_one_does_with_two_processes(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.mkdir()
    process = start(one, "--standalone", "--nproc-per-node=2", "-m", "atbench", "train", *WORDS)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    (code, output, errors), second = nodes((two, two), "-m", "atbench", "train", *WORDS, "train.shard=true")
    assert (code, second[0]) == (0, 0), errors + second[2]
    assert output.count("upper bound") == 1 and "method  pgd_at" in errors
    assert second[1] == "" and "pgd_at" not in second[2], "the main process alone speaks"
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6)

    (run,) = (two / "runs").iterdir()
    words = ("eval=smoke", "eval.limit=48", "device=cpu", "threads=1")
    found = nodes((two, two), "-m", "atbench", "eval", str(run), *words)
    assert [each[0] for each in found] == [0, 0], found
    assert len(list((run / "evaluation").glob("*-n48/best.json"))) == 1


def test_folders_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    (code, _, said), (other, _, _) = nodes(folders, "-m", "atbench", "train", *WORDS)
    assert code != 0 and other != 0
    assert "error: runs: runs — is not the same folder on all nodes; use one on a shared disk" in said
    assert list((folders[0] / "runs").iterdir()) == [] and not (folders[1] / "runs").exists()
