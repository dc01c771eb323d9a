"""What a teacher is, measured before it teaches: a network at chance would teach noise for a whole training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from atbench.errors import ConfigError, DataError, NumericalError
from atbench.interval import accuracy_figures
from atbench.reporting.console import print_line, print_warnings
from atbench.reporting.wording import accuracy_text
from atbench.runs.run_dir import set_status
from atbench.training import Trainer
from atbench.workflows.external_model import first_logits
from atbench.workflows.pretraining import PlannedStage, read_network

STEPS = 10

Figures = dict[str, Any]


def measure_finished(planned: Mapping[str, PlannedStage], trainer: Trainer) -> dict[str, Figures]:
    """The figures of those teachers that are finished networks, by stage. Raises what `measure` does."""
    teachers = {name: each for name, each in planned.items() if each.stage.teaches and each.checkpoint is not None}
    return {
        name: measure(name, each, read_network(each, trainer.world.device), trainer) for name, each in teachers.items()
    }


def record_teachers(
    planned: Mapping[str, PlannedStage],
    networks: Mapping[str, nn.Module],
    measured: Mapping[str, Figures],
    trainer: Trainer,
    run: Path,
) -> None:
    """Measure the teachers that are not among those `measured`, say what each is, and keep it in its stage's status."""
    for name, each in planned.items():
        if not each.stage.teaches:
            continue
        figures = measured.get(name) or measure(name, each, networks[name], trainer)
        if trainer.world.main:
            set_status(run / each.folder, teacher=figures)
            _say(name, each.stage.teaches, figures, Console(stderr=True))


def measure(name: str, planned: PlannedStage, network: nn.Module, trainer: Trainer) -> Figures:
    """Clean accuracy and that under PGD-10 at the run's radius, on the part of the held-out images that epochs are
    selected by.

    Raises ConfigError or DataError for a network that does not take these images, has other classes, answers with NaN,
    or is not better than chance on clean images.
    """
    validation, classes = trainer.validation, len(planned.source.classes)
    key, which = f"stage {name}", planned.checkpoint or planned.folder
    x = validation.held.floats(torch.arange(1), torch.float32)
    logits = first_logits(network, str(which), x, "the images of this run", "use another teacher", key)
    if logits.shape[1] != classes:
        why = f"gives {logits.shape[1]} logits, and there are {classes} classes"
        raise ConfigError(key, which, why, "use another teacher")
    try:
        clean, robust = (validation.accuracy(network, steps=steps) for steps in (0, STEPS))
    except NumericalError as fault:
        raise DataError(key, which, "its logits are NaN or infinite", "use another teacher") from fault
    n, threat = len(validation.held), validation.threat
    found = {"clean": accuracy_figures(clean * n, n), "pgd": accuracy_figures(robust * n, n)}
    if not above_chance(found["clean"], classes):
        why = f"is not better than chance: {accuracy_text(found['clean'])} of {n} held-out images without an attack"
        fix = "use another teacher, or give it the normalisation and the options of its training"
        fix = fix if planned.checkpoint else "train it longer, or name a finished one"
        raise DataError(key, which, why, fix)
    return {**found, "chance": 1 / classes, "steps": STEPS, "norm": threat.norm, "eps": threat.eps, "n": n}


def above_chance(figures: Mapping[str, float], classes: int) -> bool:
    """Whether the 95 % interval of an accuracy lies above that of guessing."""
    return figures["low"] > 1 / classes


def _say(name: str, teaches: str, figures: Figures, console: Console) -> None:
    clean, robust = (accuracy_text(figures[key]) for key in ("clean", "pgd"))
    images = f"{figures['n']} held-out images"
    print_line(f"{name}  clean {clean}, PGD-{STEPS} {robust}, of {images}", console)
    if teaches == "robust" and not above_chance(figures["pgd"], round(1 / figures["chance"])):
        why = f"is at chance under PGD-{STEPS}: what is distilled from it is not robustness"
        print_warnings([f"{name}: {why}"], console)
