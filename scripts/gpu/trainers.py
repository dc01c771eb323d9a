"""Trainers of atbench for single steps. The one file here that knows how the program assembles them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol
from unittest.mock import patch

import torch
from omegaconf import DictConfig
from torch import Tensor

from atbench.config import values
from atbench.config.compose import compose
from atbench.data import Images, Source
from atbench.data.digits import digits
from atbench.errors import Interrupted
from atbench.runs.seeding import Draws
from atbench.training import Trainer, World
from atbench.training.callbacks import Callbacks, Interrupt
from atbench.workflows import factory
from atbench.workflows.pretraining import load_untrained


class Watch(Callbacks, Interrupt, Protocol):
    """A trainer's callbacks and interrupt: what it is told, and the exit code with which it ends after a step."""


def configuration(*words: str) -> DictConfig:
    """The configuration of `atbench train` with these words."""
    return values.resolve(compose("train", ["logger=none", *words]))


def make_trainer(
    cfg: DictConfig, source: Source, device: torch.device, watch: Watch, here: World | None = None
) -> Trainer:
    """A trainer at its beginning. Networks that a method wants trained first are untrained ones."""
    world = here or World(device)
    data = factory.make_data(cfg, source, world)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, world)
    load_untrained(cfg, method, source, device)
    return factory.make_trainer(cfg, method, data, world, watch, watch)


def fit(trainer: Trainer) -> None:
    """Train until the watch interrupts."""
    try:
        trainer.fit()
    except Interrupted:
        return
    raise AssertionError("the training ended before it was interrupted")


def few_digits() -> Source:
    """96 real digits, 32 of them held out."""
    whole = digits()
    return replace(whole, train=whole.train.take(torch.arange(96)), validation=32)


def noise(cfg: DictConfig, count: int) -> Source:
    """Random images in the shape and classes of CIFAR-10: what is timed does not depend on the pixels."""
    node = cfg.dataset.source
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(count) % len(node.classes))
    return Source(
        "noise", images, lambda: images, tuple(node.classes), tuple(node.mean), tuple(node.std), validation=100
    )


@contextmanager
def same_draws() -> Iterator[None]:
    """A block in which random numbers of training are drawn on the CPU, whatever the device: equal for all devices."""
    init, uniform, normal = Draws.__init__, Draws.uniform, Draws.normal

    def begin(self: Draws, source: torch.Generator, *args: int, **kwargs: int) -> None:
        init(self, torch.Generator().manual_seed(source.initial_seed()), *args, **kwargs)

    def handed_over(draw: Callable[[Draws, Tensor], Tensor]) -> Callable[[Draws, Tensor], Tensor]:
        return lambda self, like: draw(self, torch.empty(like.shape, dtype=like.dtype)).to(like.device)

    with (
        patch.object(Draws, "__init__", begin),
        patch.object(Draws, "uniform", handed_over(uniform)),
        patch.object(Draws, "normal", handed_over(normal)),
    ):
        yield
