"""How fast a device trains: images per second, the attack's share and peak memory; and what `atbench bench` says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from atbench.data import Batch
from atbench.training.callbacks import Silent
from scripts.gpu.session import ROOT, OutOfTime, Session
from scripts.gpu.trainers import configuration, fit, make_trainer, noise

METHODS = ("pgd_at", "trades", "free_at", "fgsm_mep")
BATCHES = (128, 512)
PRECISIONS = ("fp32", "tf32", "bf16")
WARMUP, STEPS, SECONDS, SHARED = (
    5,
    40,
    10.0,
    5,
)  # steps before the clock, at most so many or so long, then for the share
KINDS = ("train", "eval", "data", "start")  # of `atbench bench`
NETWORK, TINY = ("model=preactresnet18",), ("model.width=2", "attack.steps=2")


@dataclass
class Stopwatch(Silent):
    """A watch that reads the clock after every step, synchronised, and ends a pass after so many steps or seconds."""

    session: Session
    warmup: int = 0
    steps: int = 0
    seconds: float = 0.0
    stamps: list[float] = field(default_factory=list)

    def start(self, warmup: int, steps: int, seconds: float) -> None:
        """Begin a pass."""
        self.warmup, self.steps, self.seconds, self.stamps = warmup, steps, seconds, []

    def synchronised(self) -> float:
        """The time when the device has done all that it was asked for."""
        if self.session.device.type == "cuda":
            torch.cuda.synchronize(self.session.device)
        return perf_counter()

    def advance(self, examples: int, attack_share: float) -> None:
        self.stamps.append(self.synchronised())

    def __call__(self) -> int:
        if self.session.left() <= 0:
            raise OutOfTime
        return 75 if self.counted and (self.counted >= self.steps or self.elapsed > self.seconds) else 0

    @property
    def counted(self) -> int:
        """Steps after the warm-up."""
        return max(0, len(self.stamps) - 1 - self.warmup)

    @property
    def elapsed(self) -> float:
        """Seconds that the counted steps took."""
        return self.stamps[-1] - self.stamps[self.warmup]


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
    """Time one training: a pass without a clock inside the step, then a short one for the share of the attack."""
    number = "bf16" if kind == "bf16" else "fp32"
    words = (
        *("dataset=cifar10", f"method={name}", f"train.batch_size={batch}", "train.channels_last=true"),
        *(f"train.precision.attack={number}", f"train.precision.update={number}"),
        *(f"train.precision.tf32={str(kind == 'tf32').lower()}", "train.selection.n=10"),
        *(TINY if session.smoke else NETWORK),
        *own,
    )
    warmup, steps, seconds, shared = (1, 3, 0.5, 2) if session.smoke else (WARMUP, STEPS, SECONDS, SHARED)
    cfg = configuration(*words)
    source = noise(cfg, 100 + int(batch) * (warmup + steps + shared + 4))
    watch = Stopwatch(session)
    cuda = session.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(session.device)
    trainer = make_trainer(cfg, source, session.device, watch)
    watch.start(warmup, steps, seconds)
    fit(trainer)
    rate, steps = int(batch) * watch.counted / watch.elapsed, watch.counted
    peak = torch.cuda.max_memory_allocated(session.device) / 2**30 if cuda else None
    searches = attack_clock(trainer.method, watch)
    watch.start(0, shared, seconds)
    fit(trainer)
    inside = [took for began, took in searches if began >= watch.stamps[0]]
    share = sum(inside) / watch.elapsed if searches else None
    return {"images_per_second": rate, "steps": steps, "attack_share": share, "peak_gib": peak}


def attack_clock(method: torch.nn.Module, watch: Stopwatch) -> list[tuple[float, float]]:
    """When each search begins from now on and how long it takes; empty where it shares its pass with the update."""
    searches: list[tuple[float, float]] = []
    perturb = method.perturb

    def timed(batch: Batch) -> Batch:
        began = watch.synchronised()
        result = perturb(batch)
        if result is not batch:  # a method without a search of its own hands the batch back
            searches.append((began, watch.synchronised() - began))
        return result

    method.perturb = timed
    return searches
