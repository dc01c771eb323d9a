"""Training steps: ours, assembled as `atbench train` does it, and those that users of other tools write."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from atbench.bench import peers
from atbench.bench.peers import Run
from atbench.config import values
from atbench.config.compose import compose
from atbench.data import Source
from atbench.methods import Method
from atbench.training import Trainer, World
from atbench.training.callbacks import Silent
from atbench.training.cost import Count
from atbench.training.stopwatch import seconds_of
from atbench.workflows import factory, pretraining

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@cache
def configuration(*words: str) -> DictConfig:
    """The configuration of `atbench train` with these words, of images that are not augmented."""
    return values.resolve(compose("train", ["logger=none", "train.augment=false", *words]))


def make_trainer(cfg: DictConfig, source: Source, device: torch.device) -> Trainer:
    """A trainer at its beginning, in train mode. Networks that a method wants trained first are untrained ones."""
    world = World(device)
    data = factory.make_data(cfg, source, world)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, world)
    pretraining.load_untrained(cfg, method, source, device)
    trainer = factory.make_trainer(cfg, method, data, world, Silent(), lambda: 0)
    method.train()
    return trainer


class OurStep:
    """Our training step on one batch that is on the device: search, loss, update and the epoch's record of both."""

    def __init__(self, cfg: DictConfig, source: Source, device: torch.device) -> None:
        self.trainer = make_trainer(cfg, source, device)
        self.batch = self.trainer.data.batch(0, 0)
        if self.trainer.recipe.channels_last:
            self.batch = replace(self.batch, x=self.batch.x.contiguous(memory_format=torch.channels_last))

    def __call__(self) -> None:
        for turn in self.trainer.method.inner_updates(self.batch):
            self.trainer.train_step(turn)
        self.trainer.means.clear()

    def bare(self) -> None:
        """The same search, loss and update, without a trainer."""
        method = self.trainer.method
        for turn in method.inner_updates(self.batch):
            batch = method.perturb(turn.batch) if turn.perturb else turn.batch
            method.loss(batch).total.backward()
            for group in self.trainer.groups:
                group.optimizer.step()
                group.optimizer.zero_grad()
            method.after_update(batch)

    def attack_share(self) -> float:
        """The share of one step's time that its search takes, by the step's own laps."""
        search = self.trainer.train_step.attack_time
        before = search.seconds
        whole = seconds_of(self, search.device)
        return (search.seconds - before) / whole


def operations(method: Method, batch: Any) -> int:
    """Floating-point operations of one batch, used as the trainer uses it, without the optimizer."""
    with Count() as count:
        for turn in method.inner_updates(batch):
            turn.batch = method.perturb(turn.batch) if turn.perturb else turn.batch
            method.loss(turn.batch).total.backward()
            method.zero_grad()
            method.after_update(turn.batch)
    return count.total


def forward_operations(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one image's forward pass, counted on a copy on the CPU."""
    with Count() as count, torch.no_grad():
        copy.deepcopy(network).cpu().float().eval()(torch.zeros(1, *shape))
    return count.total


def trades_loss(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """TRADES with β = 6, as its authors write it."""
    clean, adversarial = network(x), network(x_adv)
    kl = F.kl_div(F.log_softmax(adversarial, dim=1), F.softmax(clean, dim=1), reduction="batchmean")
    return F.cross_entropy(clean, y) + 6.0 * kl


def plain_loss(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network(x_adv), y)


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def plain_step(network: nn.Module, attack: Run, loss: Loss, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step around another tool's attack, as its users write it: eval mode for the attack, then an update."""
    optimizer, rows = sgd(network), torch.arange(len(x))

    def step() -> None:
        network.eval()
        x_adv = attack(x, y, rows)
        network.train()
        optimizer.zero_grad()
        loss(network, x, x_adv, y).backward()
        optimizer.step()

    return step


def mair_step(trainer: Any, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of MAIR's trainer: its own cost, then an update."""
    trainer.setup(optimizer=sgd(trainer.rmodel))

    def step() -> None:
        trainer.rmodel.train()
        trainer.dict_record.clear()
        cost = trainer.calculate_cost((x, y))
        trainer.optimizer.zero_grad()
        cost.backward()
        trainer.optimizer.step()

    return step


def their_steps(
    network: nn.Module, name: str, attack: DictConfig, x: Tensor, y: Tensor, tools: list[str]
) -> dict[str, Callable[[], None]]:
    """Steps of the tools that have the method, `pgd_at` or `trades`, each on a copy of the network."""
    eps, size, steps = float(attack.eps), float(attack.step_size), int(attack.steps)
    trades = name == "trades"
    loss = trades_loss if trades else plain_loss
    made: dict[str, Callable[[], None]] = {}
    for tool in tools:
        own = copy.deepcopy(network)
        if tool == "torchattacks":
            kind = "TPGD" if trades else "PGD"
            run = peers.torchattacks(own, kind, eps=eps, alpha=size, steps=steps)
            made[tool] = plain_step(own, run, loss, x, y)
        elif tool == "MAIR":
            mair: Any = __import__("mair")
            model, options = mair.RobModel(own, 10), {"eps": eps, "alpha": size, "steps": steps}
            made[tool] = mair_step(
                mair.TRADES(model, beta=6.0, **options) if trades else mair.AT(model, **options), x, y
            )
        elif tool == "foolbox" and not trades:
            run = peers.foolbox(own.eval(), "LinfPGD", eps, abs_stepsize=size, steps=steps, random_start=True)
            made[tool] = plain_step(own, run, loss, x, y)
        elif tool == "ART" and not trades:
            made[tool] = plain_step(own, peers.art(own, eps, size, steps, 1, tuple(x.shape[1:])), loss, x, y)
    return made
