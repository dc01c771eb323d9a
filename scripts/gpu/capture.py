"""Whether searches as CUDA graphs (`train.capture`) train the same weights, and how much faster they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atbench.config.registry import conf_dir, entries
from atbench.training import Trainer
from scripts.gpu.bench import PRECISIONS, cell_of
from scripts.gpu.parity import OWN, OneStep, on_cpu, relative
from scripts.gpu.session import Session
from scripts.gpu.trainers import configuration, few_digits, fit, make_trainer

WORDS = (
    *("dataset=digits", "model.width=8", "attack.steps=3", "train.batch_size=16", "train.epochs=2"),
    *("train.optimizer.lr=0.02", "train.channels_last=false"),
)
#: Steps after which weights are compared. The first runs as it is, the second is captured, the third only replayed.
STEPS = (1, 3)
#: Whose search has to be captured. Others may not be: those that share the pass of the update, stop early, or
#: differentiate twice (llr).
MUST = ("pgd_at", "trades", "mart")
#: Timed at the batch size at which launching kernels takes as long as computing.
TIMED, BATCH = ("pgd_at", "trades", "mart", "fast_at", "free_at", "llr"), "128"


@dataclass
class Weights(OneStep):
    """A watch that keeps the state after each step, and ends the training after the last of STEPS."""

    trainer: Trainer | None = None
    states: list[dict[str, Tensor]] = field(default_factory=list)

    def advance(self, examples: int, attack_share: float) -> None:
        assert self.trainer is not None
        self.states.append(on_cpu(self.trainer.state()["method"]))

    def __call__(self) -> int:
        return 75 if len(self.states) == max(STEPS) else 0


def capture(session: Session, methods: list[str] | None = None) -> None:
    """Compare all methods, and time some."""
    every = TIMED if session.smoke else [entry["name"] for entry in entries("methods", [conf_dir()])]
    names = methods or list(every)
    kinds = ("fp32",) if session.smoke else PRECISIONS
    cells = [f"{name}/equal" for name in names]
    cells += [f"{name}/{kind}" for name in TIMED if name in names for kind in kinds]

    def measure(cell: str) -> dict[str, Any]:
        name, what = cell.split("/")
        return equality(session, name) if what == "equal" else speed(session, name, what)

    session.fill("capture", cells, measure)


def word(session: Session, captured: bool) -> str:
    """The setting: a CPU, which tries this script, refuses `true`."""
    on = "true" if session.device.type == "cuda" else "auto"
    return f"train.capture={on if captured else 'false'}"


def equality(session: Session, name: str) -> dict[str, Any]:
    """Largest differences of the weights, captured and not; and of two trainings that are not, which a device may
    compute in another order each time.
    """
    with deterministic():
        plain, _ = train(session, name, captured=False)
        again, _ = train(session, name, captured=False)
        captured, replays = train(session, name, captured=True)
    differences = {steps: difference(plain[steps - 1], captured[steps - 1]) for steps in STEPS}
    result: dict[str, Any] = {f"after {steps}": value for steps, value in differences.items()}
    result |= {"twice plain": difference(plain[-1], again[-1]), "captured": replays > 0}
    if result["twice plain"] == 0:  # else no difference says anything
        result["agrees"] = not any(differences.values())
    if session.device.type == "cuda" and name in MUST and not replays:
        result["agrees"] = False
    return result


def train(session: Session, name: str, captured: bool) -> tuple[list[dict[str, Tensor]], int]:
    """The states after each step, and how many graphs were replayed."""
    cfg = configuration(f"method={name}", *WORDS, *OWN.get(name, ()), word(session, captured))
    watch = Weights()
    watch.trainer = make_trainer(cfg, few_digits(), session.device, watch)
    with counted_replays() as count:
        fit(watch.trainer)
    return watch.states, count[0]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states; 0 only if all values are equal."""
    return max(relative(value, b[key]) for key, value in a.items() if value.numel())


def speed(session: Session, name: str, kind: str) -> dict[str, Any]:
    """Images per second, captured and not."""
    batch = "8" if session.smoke else BATCH
    captured, plain = (
        float(cell_of(session, name, batch, kind, word(session, on))["images_per_second"]) for on in (True, False)
    )
    return {"captured images/s": captured, "plain images/s": plain, "ratio": captured / plain}


@contextmanager
def counted_replays() -> Iterator[list[int]]:
    """A block in which replays of CUDA graphs are counted."""
    count, replay = [0], torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        count[0] += 1
        replay(graph)

    torch.cuda.CUDAGraph.replay = counted
    try:
        yield count
    finally:
        torch.cuda.CUDAGraph.replay = replay


@contextmanager
def deterministic() -> Iterator[None]:
    """A block in which cuDNN computes the same twice."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
