"""The outer minimisation: epochs of batches, validation, selection, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError, Interrupted
from atbench.evaluation import PGDConfig
from atbench.methods.base import Decision, Keep, Method, Report, Restore, Stop
from atbench.models.cuda_settings import cuda_settings
from atbench.runs.seeding import derive_seed, seed_global
from atbench.training.callbacks import Callbacks, Interrupt
from atbench.training.collapse import CollapseWatch
from atbench.training.distributed import World
from atbench.training.kept_states import KeptStates
from atbench.training.micro_batches import MicroBatches
from atbench.training.param_groups import Group
from atbench.training.recipe import Recipe
from atbench.training.running_means import RunningMeans
from atbench.training.save_times import SaveTimes
from atbench.training.sharding import gathered, is_sharded, parts_like
from atbench.training.stopwatch import wait_for
from atbench.training.train_step import TrainStep
from atbench.training.validation import Validation, rank
from atbench.training.weight_averaging import Average
from atbench.training.weight_perturbation import WeightPerturbation


class Trainer:
    """Trains a method: `fit()` goes on from wherever `state()`, everything a checkpoint needs, was loaded from."""

    def __init__(
        self,
        method: Method,
        data: TrainData,
        groups: Sequence[Group],
        recipe: Recipe,
        threat: PGDConfig,
        world: World,
        callbacks: Callbacks,
        plus: Sequence[WeightPerturbation | Average] = (),
        interrupt: Interrupt = lambda: 0,
        others: Sequence[PGDConfig] = (),
        watch: CollapseWatch | None = None,
    ) -> None:
        self.method, self.data, self.groups, self.recipe, self.world = method, data, list(groups), recipe, world
        self.callbacks, self.interrupt, self.watch = callbacks, interrupt, watch
        self.averages = [part for part in plus if isinstance(part, Average)]
        if len(names := [type(part).__name__.lower() for part in self.averages]) > 1:
            raise ConfigError("plus", " and ".join(names), "a run selects and evaluates one average", "choose one")
        awp = next((part for part in plus if isinstance(part, WeightPerturbation)), None)
        self.sharded = is_sharded(method.model)
        clock = method.clock
        clock.epochs, clock.steps, clock.seed = recipe.epochs, data.steps, recipe.seed
        clock.rank, clock.world = world.rank, world.size
        self.means = RunningMeans()
        self.train_step = TrainStep(
            method, groups, world, self.means, recipe.precision, recipe.clip_norm, awp, self.averages
        )
        self.micro_batches = MicroBatches(method, data, self.train_step, recipe, callbacks.say)
        self.kept = KeptStates(method.model, self.groups)
        self.best: dict[str, Any] = {"score": -1.0, "clean": -1.0, "epoch": -1}
        self.seconds = 0.0
        self.over: str | None = None
        self.validation = Validation(data, threat, recipe.select_n, world, others, callbacks.validating)

    # The loops: epochs, batches, rounds of a batch.

    def fit(self) -> None:
        """Train to the end, or until the method ends it. Raises Interrupted between two steps, after saving.

        The clock moves here alone: `epoch` and `step` are those of the next batch whenever a state is saved.
        """
        deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
        with cuda_settings("tf32" if self.recipe.tf32 else "ieee", benchmark=not deterministic):
            self._fit_epochs()

    def _fit_epochs(self) -> None:
        clock, began, times = self.method.clock, time.monotonic(), SaveTimes(self.method, self.recipe, self.world)
        attack_time = self.train_step.attack_time
        while clock.epoch < clock.epochs and self.over is None:
            self.method.train()
            started, examples, attack = time.monotonic(), 0, attack_time.seconds
            while clock.step < clock.steps and self.over is None:
                self.train_batch()
                clock.step += 1
                examples += self.data.batch_size
                attack_share = (attack_time.seconds - attack) / (time.monotonic() - started)
                self.callbacks.advance(self.data.batch_size, attack_share)
                self._watch_collapse()
                if clock.step < clock.steps and self.over is None:
                    self._between_steps(began, times)
            wait_for(attack_time.device)
            elapsed = time.monotonic() - started
            self.seconds += elapsed
            row = self._end_of_epoch(elapsed, examples, (attack_time.seconds - attack) / elapsed)
            clock.epoch, clock.step = clock.epoch + 1, 0
            if self.world.main:
                self.callbacks.epoch(row)
            if row.get("best"):
                self._save("best", self.best.get("network", "average"))
            if self.recipe.save_every and clock.epoch % self.recipe.save_every == 0:
                self._save(f"epoch_{clock.epoch}")
            ended = clock.epoch == clock.epochs or self.over is not None
            if due := ended or times.between_epochs():
                self._save("last")
                times.note()
            if not ended:
                self._leave_if_asked(began, save=not due)

    def train_batch(self) -> None:
        """Load the batch where the clock stands, and train on it as often as the method says."""
        clock = self.method.clock
        for group in self.groups:
            group.set_rate(clock.fraction)
            clock.rates[group.name] = group.rate
        # Dropout and the like draw from the global generator: seeded by position, a resumed run draws the same.
        seed_global(derive_seed(clock.seed, "global", clock.epoch, clock.step, clock.rank), self.world.device)
        batch = self._formatted(self.data.batch(clock.epoch, clock.step))
        self.micro_batches.train_on(batch)
        self.world.average_norms(self.method)

    def _watch_collapse(self) -> None:
        """Between two steps: report a collapse, and do what `guard` says."""
        if self.watch and (found := self.watch.after_step(self.method.model, self.method.clock)):
            row, decision = found
            if self.world.main:
                self.callbacks.watched(row)
            self._obey(decision)

    def _formatted(self, batch: Batch) -> Batch:
        if not self.recipe.channels_last:
            return batch
        x, *views = (each.contiguous(memory_format=torch.channels_last) for each in (batch.x, *batch.views))
        return replace(batch, x=x, views=tuple(views))

    def _between_steps(self, began: float, times: SaveTimes) -> None:
        if times.between_steps():
            self._save("last")
            times.note()
        if self.world.size == 1 or self.method.clock.step % 10 == 0:
            self._leave_if_asked(began, save=True)

    def _leave_if_asked(self, began: float, save: bool) -> None:
        """End between two steps on a signal or after `time_limit` minutes; all processes leave at the same step."""
        code = self.interrupt()
        if not code and self.recipe.time_limit is not None and time.monotonic() - began > 60 * self.recipe.time_limit:
            code = 75
        code = self.world.agree(code)
        if code:
            if save:
                self._save("last")
            why = "the time box is full" if code == 75 else "a signal asked for it"
            raise Interrupted(code, "train", "stopped", why, "the run goes on from its checkpoint")

    def _end_of_epoch(self, seconds: float, examples: int, attack_share: float) -> dict[str, Any]:
        """Averages, validation and the method's decision. Returns the epoch's row of metrics."""
        clock = self.method.clock
        self.train_step.check_finite()
        for average in self.averages:
            average.after_epoch(self.method.model, clock, self._clean_pass, self.validation.worst_class)
        row: dict[str, Any] = {
            "event": "epoch",
            "epoch": clock.epoch + 1,
            "epochs": clock.epochs,
            "step": clock.epoch * clock.steps + clock.step,
            "fraction": clock.fraction,
            "seconds": round(seconds, 3),
            "examples_per_second": round(examples / seconds, 1),
            "attack_share": round(attack_share, 3),
            "lr": {group.name: group.rate for group in self.groups},
            "train": self.means.means(self.world),
        }
        if clock.epoch + 1 == clock.epochs or (clock.epoch + 1) % self.recipe.select_every == 0:
            self._validate(row)
        if figures := self.method.epoch_figures():
            row["method"] = figures
        self._obey(self.method.on_epoch(Report(row, self._measure)))
        self.means.clear()
        if self.over is not None:
            row["stopped"] = self.over
        return row

    @torch.no_grad()
    def _clean_pass(self) -> None:
        """The epoch's clean images through the model once more, for an average's BatchNorm."""
        clock = self.method.clock
        for step in range(clock.steps):
            self.method.model(self._formatted(self.data.batch(clock.epoch, step)).x)
        self.world.average_norms(self.method.model)

    # Validation and selection.

    @contextmanager
    def evaluated(self, network: str = "average") -> Iterator[nn.Module]:
        """The network as it is evaluated: the average if there is one, else what the method names; or the live one."""
        average = next((average for average in self.averages if average.ready), None)
        if network == "live" or average is None:
            yield self.method.model if network == "live" else self.method.evaluated()
            return
        with average.applied(self.method.model):
            yield self.method.model

    def _validate(self, row: dict[str, Any]) -> None:
        """Put the figures of the held-out part into the row, and whether this epoch is the best so far."""
        both = self.recipe.select_both and any(average.ready for average in self.averages)
        networks = {name: self.evaluated(name) for name in ("average", "live")[: 1 + both]}
        network, figures = self.validation.better(networks)
        row |= figures | (told := {"network": network} if both else {})
        score, clean = rank(row["val"])
        row["best"] = better = (score, clean) > (self.best["score"], self.best["clean"])
        if better:
            self.best = {"score": score, "clean": clean, "epoch": row["epoch"], "n": row["val"]["n"], **told}

    def _measure(self, **changes: Any) -> float:
        """`Report.validate`: accuracy of the live model on the held-out part under a changed threat."""
        return self.validation.accuracy(self.method.model, **changes)

    def _obey(self, decision: Decision | None) -> None:
        if isinstance(decision, Keep):
            self.kept.keep(decision.name)
        elif isinstance(decision, Restore):
            self.kept.restore(decision.name, decision.parts)
        elif isinstance(decision, Stop):
            self.over = decision.why
            if decision.restore:
                self.kept.restore(decision.restore, ("model",))

    # State.

    def _save(self, name: str, network: str = "average") -> None:
        self.train_step.check_finite()
        if not self.world.main and not self.sharded:
            return
        state = self.state() if name == "last" else self.epoch_state(network)
        if self.world.main:
            self.callbacks.save(name, state)

    def epoch_state(self, network: str = "average") -> dict[str, Any]:
        """What evaluation needs of the epoch that has ended."""
        with self.evaluated(network) as model:
            state = deepcopy(model.state_dict())
        weights = gathered(state, keep=self.world.main) if self.sharded else state
        return {"model": weights, "epoch": self.method.clock.epoch, "best": dict(self.best)}

    def state(self) -> dict[str, Any]:
        """Everything: a run resumed from it is bit-identical to one that was never disturbed.

        Of a sharded network all processes call it, and the main one has whole tensors, as if it were not sharded.
        """
        clock, method = self.method.clock, self.method.state_dict()
        with self.evaluated() as network:
            model = network.state_dict()
            if any(average.ready for average in self.averages):
                model = deepcopy(model)  # the values of an average leave the network with this block
            elif self.sharded:
                model = {name: method[f"model.{name}"] for name in model}  # the same tensors, to be gathered once
        state = {
            "model": model,
            "epoch": clock.epoch,
            "step": clock.step,
            "method": method,
            "optimizers": {group.name: group.state() for group in self.groups},
            "averages": [{"values": average.values, "updates": average.updates} for average in self.averages],
            "kept": self.kept.states,
            "sums": self.means.state(),
            "best": dict(self.best),
            "seconds": self.seconds,
            "over": self.over,
            "watch": self.watch and self.watch.state(),
            "world": self.world.size,
        }
        return gathered(state, keep=self.world.main) if self.sharded else state

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state()`."""
        clock = self.method.clock
        self.method.load_state_dict(parts_like(state["method"], self.method.state_dict()))
        for group in self.groups:
            group.load(state["optimizers"][group.name])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            values = parts_like(saved["values"], self.method.model.state_dict())
            average.values, average.updates = values, saved["updates"]
        self.kept.states, self.best = state["kept"], state["best"]
        self.means.load(state["sums"], self.world.device)
        self.seconds, self.over = state["seconds"], state["over"]
        if self.watch and state.get("watch"):  # a run of 0.1.0 has none
            self.watch.load(state["watch"])
        clock.epoch, clock.step = state["epoch"], state["step"]
