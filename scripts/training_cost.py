"""What a training costs: forward passes, counted, and CPU seconds, both of a training that is cut short."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from atbench.config import values
from atbench.config.compose import compose
from atbench.data import Source
from atbench.runs.run_dir import write_json
from atbench.runs.signals import flag_signals
from atbench.training import Trainer, World, threads
from atbench.training.cost import Count
from atbench.workflows import factory
from atbench.workflows.environment import processor_name
from atbench.workflows.train import Run

#: Held-out measurements, which cost as well, are next to nothing.
SHORT = ("train.epochs=2", "train.selection.every=2", "train.selection.n=1", "train.selection.steps=1")
SHORT += ("guard.collapse=null",)
HERE = World(torch.device("cpu"))


@contextmanager
def _short_training(cfg: DictConfig, source: Source) -> Iterator[tuple[Trainer, Callable[[], None]]]:
    """The trainer of two epochs, and what trains them, pre-training included."""
    with TemporaryDirectory() as folder, flag_signals() as signal, threads(1), redirect_stderr(StringIO()):
        run = Run(cfg, source, HERE, signal, Path(folder), label="cost")
        write_json(run.folder / "status.json", {})
        trainer = run.build_trainer(fresh=True)
        yield trainer, lambda: run.fit(trainer, None)


def _resolved(words: Sequence[str]) -> tuple[DictConfig, Source]:
    cfg = values.resolve(compose("train", [*words, *SHORT]))
    return cfg, factory.shared_source(cfg, HERE)


def forward_passes(words: Sequence[str]) -> float:
    """Forward passes of one network for each train image and epoch: all operations of a training and pre-training."""
    cfg, source = _resolved(words)
    single = OmegaConf.create({**values.plain(cfg), "model": {**cfg.model, "members": 1}})
    with Count() as forward, torch.no_grad():
        factory.make_model(single, source)(torch.rand(cfg.train.batch_size, *source.shape))
    with _short_training(cfg, source) as (trainer, fit), Count() as count:
        fit()
    return count.total / (forward.total * trainer.data.steps * cfg.train.epochs)


def speed(words: Sequence[str]) -> dict[str, Any]:
    """CPU seconds for each epoch, pre-training included, train images a CPU second and the attack's share of the time.

    The time of the process and not that of the clock: other work on the machine counts little. `single_step`: whether
    the method searches with one gradient; `processor`: where it was measured.
    """
    cfg, source = _resolved(words)
    with _short_training(cfg, source) as (trainer, fit):
        began = time.process_time()
        fit()
        seconds = (time.process_time() - began) / cfg.train.epochs
    return {
        "epoch_seconds": seconds,
        "images_per_second": trainer.data.steps * trainer.data.batch_size / seconds,
        "attack_share": trainer.train_step.attack_time.seconds / trainer.seconds,
        "single_step": trainer.method.single_step(),
        "processor": processor_name(),
    }


def remembered(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures that are made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return dict(json.loads(path.read_text()))
