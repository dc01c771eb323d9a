"""Whether two processes train what one trains: the stage, and the program that it starts under torchrun.

python -m scripts.gpu.ranks cuda FILE     one process; its weights are written to FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from atbench.training import world
from scripts.gpu.parity import OneStep, on_cpu, relative
from scripts.gpu.session import ROOT, Session
from scripts.gpu.trainers import configuration, few_digits, make_trainer

WORDS = (
    *("method=pgd_at", "dataset=digits", "model.norm=none", "model.width=4", "attack.steps=3"),
    *("train.batch_size=16", "train.epochs=1", "train.optimizer.lr=0.02", "train.channels_last=false"),
    *("train.selection.n=16", "train.selection.steps=2"),
)
BOUND = 1e-9  # of the weights, relative, in float64 and without BatchNorm


class ToTheEnd(OneStep):
    """A watch that ends nothing."""

    def __call__(self) -> int:
        return 0


def ranks(session: Session) -> None:
    """Train on two devices and on one."""
    session.fill("ranks", ["two processes"], lambda _: compare(session.device))


def compare(device: torch.device) -> dict[str, Any]:
    """The largest difference of the weights."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"note": "one device: not run"}
    with TemporaryDirectory() as folder:
        one, two = (weights(device, Path(folder) / f"{count}.pt", count) for count in (1, 2))
    worst = max(relative(value, two[key]) for key, value in one.items() if value.numel())
    return {"weights": worst, "agrees": worst <= BOUND}


def weights(device: torch.device, file: Path, processes: int) -> dict[str, Tensor]:
    """What so many processes train."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "scripts.gpu.ranks", device.type, str(file)]
    # Hydra reads its own variables, torchrun the others; threads are few because the network is small.
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode or not file.exists():
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    found: dict[str, Tensor] = torch.load(file, weights_only=True)
    return found


def main() -> None:
    """Train to the end on this process, one of those that torchrun started or the only one."""
    torch.set_default_dtype(torch.float64)
    with world(sys.argv[1]) as here:
        trainer = make_trainer(configuration(*WORDS), few_digits(), here.device, ToTheEnd(), here)
        trainer.fit()
        if here.main:
            torch.save(on_cpu(trainer.state()["method"]), sys.argv[2])


if __name__ == "__main__":
    main()
