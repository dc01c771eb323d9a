"""`atbench bench plan`: what a run will take, foretold from a few of its steps or from their counted operations."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from atbench.bench.few_steps import StepClock, count_step, seconds_per_step
from atbench.bench.steps import forward_operations
from atbench.config import values
from atbench.config.compose import compose
from atbench.config.hydra_errors import composition_error, is_composition_error
from atbench.config.overrides import parse_words
from atbench.config.registry import conf_dir, options
from atbench.config.validate import validate_config
from atbench.data import Source
from atbench.data.stand_in import FORMS, stand_in
from atbench.errors import ConfigError, DataError
from atbench.reporting.wording import duration, file_size
from atbench.training import Trainer, World, reused_memory, threads
from atbench.training.distributed import choose_device
from atbench.training.stopwatch import seconds_of
from atbench.workflows import factory, pretraining
from atbench.workflows.eval_plan import make_plan
from atbench.workflows.forecast import estimate, evaluation_passes, least_passes, peak_memory

DESCRIPTION = """What a run would take: `atbench train` with the same words, of which a few steps are run and nothing is
kept. Random images stand in for data that are not here."""
FEW = 2  # images of a step that is run for its count alone
LONG = 120.0  # seconds that a step on a CPU may take unless fewer images are asked for
AT_LEAST = "at least: weights, tables, gradients, optimizer, averages, and what an update keeps for its backward pass"


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog, "arguments", message, f"see `{self.prog} --help`")


@dataclass(frozen=True)
class Run:
    """A run to be planned. train, test: images of an epoch, and of the test split; real: whether `source` is the data
    set; pool: random images in the place of `train.extra_data.path`.
    """

    cfg: DictConfig
    source: Source
    train: int
    test: int
    real: bool
    pool: Path | None

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.train // int(self.cfg.train.batch_size)


@dataclass(frozen=True)
class Cost:
    """What a run takes; times in seconds, memory in bytes. way: how it is known; memory_of: what the memory is of."""

    run: str
    way: str
    step: float
    training: float
    validation_at_most: float
    evaluation_at_most: float
    memory: int
    memory_of: str
    devices: int
    device_hours: float
    price: float | None
    notes: tuple[str, ...]


def plan(argv: Sequence[str]) -> int:
    """`atbench bench plan WORD ...`. Returns the exit code."""
    parser = _Parser("atbench bench plan", description=DESCRIPTION)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as for `atbench train`")
    parser.add_argument("--images", type=_count, metavar="N", help="run steps of so many images and scale them up")
    parser.add_argument(
        "--tflops", type=_rate, metavar="T", help="count operations, and divide them by T · 10^12 a second"
    )
    parser.add_argument("--processes", type=_count, default=1, metavar="N", help="devices that share every batch")
    parser.add_argument("--price-per-hour", type=_rate, metavar="P", help="of one device")
    parser.add_argument("--further-images", type=_count, metavar="N", help="in train.extra_data.path, for the memory")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    given = parser.parse_intermixed_args(list(argv))
    cost = foretell(given)
    print(json.dumps(asdict(cost), indent=2) if given.json else text(cost))
    return 0


def _count(word: str) -> int:
    if int(word) < 1:
        raise ValueError
    return int(word)


def _rate(word: str) -> float:
    if not 0 < float(word) < float("inf"):
        raise ValueError
    return float(word)


def foretell(given: argparse.Namespace) -> Cost:
    """The cost of the run that the command line names."""
    cfg = configuration(given.words)
    validate_config(cfg)
    size, processes = int(cfg.train.batch_size), given.processes
    if size % processes:
        raise ConfigError("--processes", processes, f"does not divide train.batch_size={size}", "choose another number")
    own = size // processes
    images = min(given.images or (FEW if given.tflops else own), own)
    device = choose_device(cfg.device)
    with TemporaryDirectory() as folder, threads(cfg.threads), reused_memory():
        run = read(cfg, images, Path(folder))
        clock = StepClock(device)
        trainer = make_trainer(run, images, device, clock)
        if given.tflops:
            found = by_count(trainer, clock, own, given.tflops)
        else:
            found = by_time(trainer, clock, own, checked=bool(given.images))
        evaluation = make_plan(cfg, run.source, trainer.world, run.source.test())
    epochs, passes = int(cfg.train.epochs), len(cfg.eval.checkpoints) * evaluation_passes(evaluation, run.test)
    seconds, a_pass = found.per_image * own, found.per_image / found.passes / processes
    times = estimate(trainer, seconds, a_pass, epochs, epochs * run.steps, passes)
    total = times.training + times.validation + times.evaluation
    further = (given.further_images or 0) * prod(run.source.shape)
    return Cost(
        run=headline(run, trainer),
        way=found.way,
        step=seconds,
        training=times.training,
        validation_at_most=times.validation,
        evaluation_at_most=times.evaluation,
        memory=found.memory + further,
        memory_of=found.memory_of + (f"; {file_size(further)} of it further images" if further else ""),
        devices=processes,
        device_hours=total * processes / 3600,
        price=given.price_per_hour and given.price_per_hour * total * processes / 3600,
        notes=tuple(notes(given, run, trainer)),
    )


@dataclass(frozen=True)
class Found:
    """What a few steps say. per_image: seconds of an image in a step; passes: forward passes in that, at least."""

    per_image: float
    passes: float
    way: str
    memory: int
    memory_of: str


def by_time(trainer: Trainer, clock: StepClock, own: int, checked: bool) -> Found:
    """Steps, timed, of as many images as the trainer has, for steps of `own`. checked: whether it may take long."""
    images, device = trainer.data.batch_size, trainer.world.device
    if device.type == "cpu" and not checked:
        _refuse_long(trainer)
    per_image, passes = seconds_per_step(trainer, clock) / images, least_passes(trainer.method)
    way = f"measured on {device}: {clock.counted} steps of {images} images"
    if images == own:
        place = "the device" if device.type == "cuda" else "the process"
        return Found(per_image, passes, way, peak_memory(device), f"peak of {place}")
    counted = count_step(trainer, clock)
    return Found(per_image, passes, f"{way}, scaled to {own}", int(counted.fixed + counted.kept * own), AT_LEAST)


def by_count(trainer: Trainer, clock: StepClock, own: int, tflops: float) -> Found:
    """The operations of one step, counted, at a given rate."""
    counted = count_step(trainer, clock)
    way = f"arithmetic, not measured: {counted.operations / 1e9:,.4g} GFLOP for each image of a step "
    way += f"(counted in one of {trainer.data.batch_size}) at {tflops:g} TFLOP/s"
    method, per_image = trainer.method, counted.operations / (tflops * 1e12)
    passes = method.forward_cost(method.attack.steps)  # where that varies, what it was in the step that was counted
    passes = passes or counted.operations / forward_operations(method.model, trainer.data.source.shape)
    return Found(per_image, passes, way, int(counted.fixed + counted.kept * own), AT_LEAST)


def configuration(words: Sequence[str]) -> DictConfig:
    """The configuration of `atbench train` with these words. Raises ConfigError."""
    try:
        return values.resolve(compose("train", parse_words(words).overrides))
    except Exception as error:
        if not is_composition_error(error):
            raise
        raise composition_error(error, ["train", *words], partial(options, folders=[conf_dir()])) from error


def read(cfg: DictConfig, images: int, folder: Path) -> Run:
    """The data set as far as a few steps of so many images need it: the real one if it is here, else random images."""
    few = images * (StepClock.most + 2) * 2
    try:
        source, real = factory.make_source(cfg, download=False), True
        train, test = len(source.train) - source.validation, len(source.test())
    except DataError:
        form = FORMS.get(cfg.dataset.about.name)
        if form is None or factory.labels_of(cfg) != "classes":
            raise
        held = int(cfg.dataset.source.validation)
        source = stand_in(
            cfg.dataset.about.name, few, min(held, cfg.train.selection.n), cfg.dataset.source.get("pad", 0)
        )
        real, train, test = False, form.train - held, form.test
    pool = None
    if cfg.train.extra_data.path is not None:  # never read: it may be larger than this machine's memory
        channels, height, width = source.shape
        pixels = np.random.default_rng(0).integers(0, 256, (few, height, width, channels), np.uint8)
        np.savez(pool := folder / "pool.npz", image=pixels, label=np.arange(few) % len(source.classes))
    return Run(cfg, source, train, test, real, pool)


def make_trainer(run: Run, images: int, device: torch.device, clock: StepClock) -> Trainer:
    """The trainer of the run with so many images a step, in the middle of its training: what begins late has begun."""
    changed = {"batch_size": images} | ({"extra_data": {"path": str(run.pool)}} if run.pool else {})
    cfg = OmegaConf.merge(run.cfg, {"train": changed})
    assert isinstance(cfg, DictConfig)
    here = World(device)
    data = factory.make_data(cfg, run.source, here)
    method = factory.make_method(cfg, factory.make_model(cfg, run.source), data, here)
    pretraining.load_untrained(cfg, method, run.source, device)
    trainer = factory.make_trainer(cfg, method, data, here, clock, clock)
    trainer.watch = None
    method.clock.epoch = method.clock.epochs // 2
    method.clock.step = min(1, data.steps - 1)  # past what an epoch begins with
    clock.most = min(clock.most, max(1, data.steps - 2))  # before it ends and is validated
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return trainer


@torch.no_grad()
def _refuse_long(trainer: Trainer) -> None:
    """Raise ConfigError where a step takes too long to be run, by the time of one image's forward pass."""
    method, images = trainer.method, trainer.data.batch_size
    image = torch.zeros(1, *trainer.data.source.shape, dtype=next(method.model.parameters()).dtype)
    seconds = seconds_of(lambda: method.model.eval()(image), image.device)
    cost = method.forward_cost(method.attack.steps) or 2 * method.attack.steps + 3  # where it varies, a guess
    if (expected := seconds * cost * images) > LONG:
        why = f"would take about {duration(expected)} here"
        fix = f"--images {FEW} scales a smaller one, --tflops T counts operations for another machine"
        raise ConfigError("bench plan", f"a step of {images} images", why, fix)


def headline(run: Run, trainer: Trainer) -> str:
    cfg = run.cfg
    parameters = sum(parameter.numel() for parameter in trainer.method.model.parameters())
    network = f"{cfg.model.about.name} ({parameters / 1e6:,.3g} million parameters)"
    epochs = f"{cfg.train.epochs} epochs of {run.steps} steps of {cfg.train.batch_size} images"
    return f"{cfg.method.about.name}, {network}, {cfg.dataset.about.name}, {epochs}"


def notes(given: argparse.Namespace, run: Run, trainer: Trainer) -> list[str]:
    """What the figures leave out."""
    said = [] if run.real else ["random images stand in for the data set, which is not here"]
    if run.cfg.train.extra_data.path and not given.further_images:
        said.append("further images take memory as well, which is not in it: --further-images N")
    if stages := list(trainer.method.pretraining()):
        said.append(f"pre-training is not in it: {', '.join(stages)}")
    if trainer.method.forward_cost(trainer.method.attack.steps) is None:
        said.append("the search changes with the examples or the epoch: this is the middle of a training, untrained")
    if "bf16" in run.cfg.train.precision.values():
        said.append("validation and evaluation compute in float32, and are told at the rate of the training's bf16")
    if given.processes > 1:
        said.append("what processes exchange takes no time in it")
    return said


def text(cost: Cost) -> str:
    """The cost as lines."""
    lines = {
        "run": cost.run,
        "way": cost.way,
        "step": f"{cost.step:.3g} s",
        "training": duration(cost.training),
        "validation": f"at most {duration(cost.validation_at_most)}",
        "evaluation": f"at most {duration(cost.evaluation_at_most)}",
        "memory": f"{file_size(cost.memory)} ({cost.memory_of})",
        "device-hours": f"at most {cost.device_hours:,.3g} ({cost.devices} device{'s' if cost.devices > 1 else ''})",
    }
    if cost.price is not None:
        lines["price"] = f"at most {cost.price:,.2f}"
    return "\n".join(
        [f"{name:<13} {value}" for name, value in lines.items()] + [f"note: {each}" for each in cost.notes]
    )
