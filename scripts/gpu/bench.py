"""How fast a device trains: images per second, the attack's share and peak memory; and what `atbench bench` says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from atbench.bench.few_steps import StepClock, seconds_per_step
from atbench.training.stopwatch import Stopwatch
from scripts.gpu.session import ROOT, OutOfTime, Session
from scripts.gpu.trainers import configuration, make_trainer, noise

METHODS = ("pgd_at", "trades", "free_at", "fgsm_mep")
BATCHES = (128, 512)
PRECISIONS = ("fp32", "tf32", "bf16")
STEPS, FEW = 45, 4  # of a cell, with those that do not count; where sizes are tiny
KINDS = ("train", "eval", "data", "start")  # of `atbench bench`
NETWORK, TINY = ("model=preactresnet18",), ("model.width=2", "attack.steps=2")


@dataclass(kw_only=True)
class CellClock(StepClock):
    """A step clock that ends with the session, and notes beside the time what the search has taken of it."""

    session: Session
    search: Stopwatch | None = None  # the trainer's; what it says is true after the wait of every stamp
    searched: list[float] = field(default_factory=list)

    def stamp(self) -> None:
        super().stamp()
        assert self.search is not None
        self.searched.append(self.search.seconds)

    def __call__(self) -> int:
        if self.session.left() <= 0:
            raise OutOfTime
        return super().__call__()


def bench(session: Session) -> None:
    """Time every method at every batch size and precision, then everything that `atbench bench` times."""
    batches, kinds = (BATCHES, PRECISIONS) if not session.smoke else ((8,), ("fp32", "bf16"))
    cells = [f"{name}/{batch}/{kind}" for name in METHODS for batch in batches for kind in kinds]
    session.fill("bench", cells, lambda cell: cell_of(session, *cell.split("/")))
    programs = [f"atbench bench {kind}" for kind in (KINDS if not session.smoke else ("start",))]
    session.fill("bench", programs, lambda cell: program(session, cell.split()[1:]))


def program(session: Session, words: list[str]) -> dict[str, Any]:
    """What `atbench WORDS --json` says: its exit code, which is not 0 where it falls short of a bar, and its JSON."""
    command = [sys.executable, "-m", "atbench", *words, "--device", session.device.type, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        return {"exit": done.returncode, "json": json.loads(done.stdout)}
    except json.JSONDecodeError:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"exit code {done.returncode}: {said}") from None


def cell_of(session: Session, name: str, batch: str, kind: str, *own: str) -> dict[str, Any]:
    """Time one training."""
    number = "bf16" if kind == "bf16" else "fp32"
    words = (
        *("dataset=cifar10", f"method={name}", f"train.batch_size={batch}", "train.channels_last=true"),
        *(f"train.precision.attack={number}", f"train.precision.update={number}"),
        *(f"train.precision.tf32={str(kind == 'tf32').lower()}", "train.selection.n=10"),
        *(TINY if session.smoke else NETWORK),
        *own,
    )
    clock = CellClock(device=session.device, most=FEW if session.smoke else STEPS, session=session)
    cfg = configuration(*words)
    cuda = session.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(session.device)
    trainer = make_trainer(cfg, noise(cfg, 100 + int(batch) * (clock.most + 2)), session.device, clock)
    clock.search = trainer.train_step.attack_time
    seconds = seconds_per_step(trainer, clock)
    share = (clock.searched[-1] - clock.searched[clock.warm_up]) / clock.elapsed
    peak = torch.cuda.max_memory_allocated(session.device) / 2**30 if cuda else None
    return {"images_per_second": int(batch) / seconds, "steps": clock.counted, "attack_share": share, "peak_gib": peak}
