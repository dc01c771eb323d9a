"""Short trainings of any method on a world where processes can be compared to the last bit: float64, no BatchNorm, 64
digits.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from omegaconf import DictConfig, OmegaConf

from atbench.config import values
from atbench.data import Source
from atbench.data.digits import digits
from atbench.evaluation.activity import Activity
from atbench.methods import Method
from atbench.training import Trainer, World, world
from atbench.training.checkpoint import encode
from atbench.workflows import factory
from atbench.workflows.stages import stage_config
from tests.support.configs import resolved

#: A fork has everything imported, which takes longer than a short training; where there is a GPU it cannot be used.
PROCESSES = mp.get_context("spawn" if torch.accelerator.is_available() else "fork")

OVERRIDES = (
    "model.norm=none",
    "model.width=4",
    "attack.steps=3",
    "train.batch_size=16",
    "train.epochs=2",
    "train.optimizer.lr=0.02",
    "train.selection.n=16",
    "train.selection.steps=2",
)
#: One process.
ALONE = World(torch.device("cpu"))
#: Methods whose rounds add up gradients: no weight perturbation on top.
ACCUMULATE = {"yopo"}
#: What a method needs to be comparable, or to get into its mechanism within eight steps.
OWN = {
    "elle": ("method.adaptive=true", "method.sensitivity=0"),  # λ jumps and decays from the fourth step on
    "sads": ("method.decay=1",),  # dropout until the end
    **dict.fromkeys(("adt_exp_am", "adt_imp_am"), ("method.generator_width=4", "method.generator_norm=none")),
    **dict.fromkeys(("fgsm_rs_cs", "fgsm_mep_cs"), ("method.stride=0", "method.gamma=0")),  # it acts in epoch 2
    # Digits are not augmented, and its perturbations are moved with crops and flips.
    "atas": ("dataset.augment={_target_: atbench.data.augment.PadCropFlip, pad: 1, flip: true}",),
    # A source of another architecture, without dropout, whose masks differ between processes.
    "eat": (
        "~method.sources.mlp",
        "method.sources.conv=['model=mnist_eat_c','model.convs=[[4,3,1,0]]','model.hidden=[8]',"
        "'model.drop_features=0','model.drop_hidden=0']",
    ),
}


class Log:
    """Callbacks that keep rows and checkpoints in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.watch: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.saved: dict[str, bytes] = {}

    def advance(self, examples: int, attack_share: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def validating(self, activity: Activity) -> None: ...

    def watched(self, row: dict[str, Any]) -> None:
        self.watch.append(row)

    def say(self, text: str) -> None:
        self.said.append(text)

    def save(self, name: str, state: dict[str, Any]) -> None:
        file = io.BytesIO()
        encode(state, file)
        self.saved[name] = file.getvalue()


def configuration(name: str, *overrides: str) -> DictConfig:
    """The configuration of a short run of a method."""
    keys = {word.partition("=")[0] for word in overrides}  # of a mapping that is given twice Hydra makes one
    own = [word for word in OWN.get(name, ()) if word.partition("=")[0] not in keys]
    return resolved(f"method={name}", *OVERRIDES, *own, *overrides)


class Interruption:
    """Asks for an end after so many steps."""

    def __init__(self, after: int | None) -> None:
        self.after = after

    def __call__(self) -> int:
        if self.after is None:
            return 0
        self.after -= 1
        return 75 if self.after == 0 else 0


def trainer_of(name: str, here: World, log: Log, *overrides: str, stop_after: int | None = None) -> Trainer:
    """A trainer at its beginning. Stage-0 networks are untrained ones: their training is the trainer's, not the
    method's.
    """
    cfg = configuration(name, *overrides)
    whole = digits()
    source = replace(whole, train=whole.train.take(torch.arange(96)), validation=32)
    data = factory.make_data(cfg, source, here)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, here)
    begin_untrained(method, cfg, source)
    return factory.make_trainer(cfg, method, data, here, log, Interruption(stop_after))


def begin_untrained(method: Method, cfg: DictConfig, source: Source) -> None:
    """Hand over untrained networks where the method asked for trained ones."""
    stages = {}
    for number, (name, stage) in enumerate(method.pretraining().items()):
        own = OmegaConf.create({**values.plain(stage_config(cfg, stage)), "seed": 100 + number})
        stages[name] = stage.handed_over(factory.make_model(own, source))
    method.load_pretrained(stages)


def count_commits(method: Method) -> list[int]:
    """Count rounds and commits of a method from now on: [rounds, commits]."""
    counts = [0, 0]
    rounds, after_update = method.inner_updates, method.after_update

    def counted_rounds(batch: Any) -> Any:
        for turn in rounds(batch):
            counts[0] += 1
            yield turn

    def counted_commit(batch: Any) -> None:
        counts[1] += 1
        after_update(batch)

    method.inner_updates, method.after_update = counted_rounds, counted_commit  # type: ignore[method-assign]
    return counts


def outcome(name: str, here: World, *overrides: str) -> dict[str, Any]:
    """Train, and return everything that processes must agree on."""
    log = Log()
    trainer = trainer_of(name, here, log, *overrides)
    counts = count_commits(trainer.method)
    trainer.fit()
    return {
        "state": trainer.state()["method"],
        "loss": [row["train"]["loss"] for row in log.rows],
        "pgd": trainer.best["score"],
        "counts": counts,
    }


class TwoProcesses:
    """Two gloo processes that train what they are asked to, one run after the other; started anew if one died.

    `run(name, world, *overrides)` is what each of them does.
    """

    def __init__(self, folder: Path, run: Callable[..., dict[str, Any]] = outcome) -> None:
        self.folder, self.run = folder, run
        self.jobs: list[Any] = []
        self.processes: list[Any] = []

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.jobs = [PROCESSES.SimpleQueue() for _ in range(2)]
        arguments = [(rank, 2, port, self.folder, jobs, self.run) for rank, jobs in enumerate(self.jobs)]
        self.processes = [PROCESSES.Process(target=work, args=each, daemon=True) for each in arguments]
        for process in self.processes:
            process.start()

    def begin(self, name: str, overrides: tuple[str, ...]) -> None:
        """Start the run of a method; `outcomes` waits for it."""
        if not self.processes:
            self.start()
        for jobs in self.jobs:
            jobs.put((name, overrides))

    def outcomes(self, name: str, overrides: tuple[str, ...]) -> list[dict[str, Any]]:
        """What both processes ended with, by rank."""
        results = [result_of(self.folder, name, overrides, rank) for rank in range(2)]
        while not all(result.is_file() for result in results):
            if not all(process.is_alive() for process in self.processes):
                self.close()
                raise AssertionError("a process died: its traceback is in the captured output")
            time.sleep(0.02)
        return [torch.load(result, weights_only=True) for result in results]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []


def result_of(folder: Path, name: str, overrides: tuple[str, ...], rank: int) -> Path:
    return folder / f"{name}-{len(overrides)}-{rank}.pt"


def work(rank: int, size: int, store: str, folder: Path, jobs: Any, run: Callable[..., dict[str, Any]]) -> None:
    """One of `size` gloo processes: jobs as they come, each result in a file of its own."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=store
    )
    with world("cpu") as here:
        while True:
            name, overrides = jobs.get()
            result = result_of(folder, name, overrides, rank)
            torch.save(run(name, here, *overrides), result.with_suffix(".part"))
            result.with_suffix(".part").rename(result)
