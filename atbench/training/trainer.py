"""The outer minimisation: epochs of batches, validation, selection, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError, Interrupted
from atbench.evaluation import PGDConfig
from atbench.methods.base import Decision, Keep, Method, Report, Restore, Stop
from atbench.seeding import derive_seed
from atbench.training.distributed import World
from atbench.training.param_groups import Group
from atbench.training.update import RunningMeans, Updater, wrap
from atbench.training.validation import Validation
from atbench.training.weight_averaging import Average
from atbench.training.weight_perturbation import WeightPerturbation


@dataclass(frozen=True)
class Recipe:
    """How long and how: the settings of `train` that are not objects."""

    epochs: int
    seed: int = 0
    precision: tuple[str, str] = ("fp32", "fp32")
    channels_last: bool = False
    clip_norm: float | None = None
    select_steps: int = 10
    select_n: int = 1000
    select_every: int = 1
    save_minutes: float = 5.0
    save_steps: int | None = None
    time_limit: float | None = None


class Watcher(Protocol):
    """What the trainer tells while it runs; only the main process's watcher does anything."""

    def advance(self, examples: int, attack_share: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def save(self, name: str, state: dict[str, Any]) -> None: ...


class Interrupt(Protocol):
    """0, or the exit code with which training should end at the next step (a signal came)."""

    def __call__(self) -> int: ...


class Trainer:
    """Trains a method. `state()` is everything a checkpoint needs; `fit()` goes on from wherever the state stands."""

    def __init__(
        self,
        method: Method,
        data: TrainData,
        groups: Sequence[Group],
        recipe: Recipe,
        threat: PGDConfig,
        world: World,
        watcher: Watcher,
        plus: Sequence[WeightPerturbation | Average] = (),
        interrupt: Interrupt = lambda: 0,
        others: Sequence[PGDConfig] = (),
    ) -> None:
        self.method, self.data, self.groups, self.recipe, self.world = method, data, list(groups), recipe, world
        self.watcher, self.interrupt = watcher, interrupt
        self.averages = [part for part in plus if isinstance(part, Average)]
        if len(self.averages) > 1:
            raise ConfigError("plus", "ema and swa", "a run selects and evaluates one average", "choose one of them")
        awp = next((part for part in plus if isinstance(part, WeightPerturbation)), None)
        if recipe.channels_last:
            method.to(memory_format=torch.channels_last)
        clock = method.clock
        clock.epochs, clock.steps, clock.seed = recipe.epochs, data.steps, recipe.seed
        clock.rank, clock.world = world.rank, world.size
        self.updater = Updater(
            method, wrap(method, world), groups, world, recipe.precision, recipe.clip_norm, awp, self.averages
        )
        self.sums = RunningMeans()
        self.kept: dict[str, dict[str, Any]] = {}
        self.best: dict[str, Any] = {"score": -1.0, "clean": -1.0, "epoch": -1}
        self.seconds = 0.0
        self.over: str | None = None
        self.validation = Validation(data, threat, recipe.select_n, world, others)

    # The loop.

    def fit(self) -> None:
        """Train to the end, or until the method ends it. Raises Interrupted between two steps, after saving."""
        clock, began, saved = self.method.clock, time.monotonic(), time.monotonic()
        while clock.epoch < clock.epochs and self.over is None:
            self.method.train()
            mark, examples, attack = time.monotonic(), 0, self.updater.attack_seconds
            while clock.step < clock.steps:
                self._one_batch()
                clock.step += 1
                examples += self.data.batch_size
                elapsed = time.monotonic() - mark
                self.watcher.advance(self.data.batch_size, (self.updater.attack_seconds - attack) / elapsed)
                if clock.step < clock.steps:
                    saved = self._between_steps(began, saved)
            elapsed = time.monotonic() - mark
            self.seconds += elapsed
            self._end_of_epoch(elapsed, examples, (self.updater.attack_seconds - attack) / elapsed)
            saved = time.monotonic()
            if clock.epoch < clock.epochs and self.over is None:
                self._leave_if_asked(began)

    def _one_batch(self) -> None:
        clock = self.method.clock
        # Dropout and the like draw from the global generator: seeded by position, a resumed run draws the same.
        torch.manual_seed(derive_seed(self.recipe.seed, "global", clock.epoch, clock.step, clock.rank))
        self.updater.batch(self._formatted(self.data.batch(clock.epoch, clock.step)), self.sums)

    def _formatted(self, batch: Batch) -> Batch:
        if not self.recipe.channels_last:
            return batch
        return replace(batch, x=batch.x.contiguous(memory_format=torch.channels_last))

    def _between_steps(self, began: float, saved: float) -> float:
        clock, recipe = self.method.clock, self.recipe
        due = recipe.save_steps is not None and (clock.epoch * clock.steps + clock.step) % recipe.save_steps == 0
        if due or time.monotonic() - saved > 60 * recipe.save_minutes:
            self._save("last")
            saved = time.monotonic()
        if self.world.size == 1 or clock.step % 10 == 0:
            self._leave_if_asked(began, save=True)
        return saved

    def _leave_if_asked(self, began: float, save: bool = False) -> None:
        """End between two steps if a signal came or the time box is full; all processes leave at the same step."""
        code = self.interrupt()
        if not code and self.recipe.time_limit is not None and time.monotonic() - began > 60 * self.recipe.time_limit:
            code = 75
        code = self.world.agree(code)
        if code:
            if save:
                self._save("last")
            why = "the time box is full" if code == 75 else "a signal asked for it"
            raise Interrupted(code, "train", "stopped", why, "the run goes on with resume=RUN")

    def _end_of_epoch(self, seconds: float, examples: int, attack_share: float) -> None:
        clock = self.method.clock
        self.updater.verify()
        for average in self.averages:
            average.after_epoch(self.method.model, clock, self._clean_pass)
        row: dict[str, Any] = {
            "event": "epoch",
            "epoch": clock.epoch + 1,
            "epochs": clock.epochs,
            "step": (clock.epoch + 1) * clock.steps,
            "fraction": (clock.epoch + 1) / clock.epochs,
            "seconds": round(seconds, 3),
            "examples_per_second": round(examples / seconds, 1),
            "attack_share": round(attack_share, 3),
            "lr": {group.name: group.rate for group in self.groups},
            "train": self.sums.means(self.world),
        }
        better = False
        last = clock.epoch + 1 == clock.epochs
        if last or (clock.epoch + 1) % self.recipe.select_every == 0:
            better = self._validate(row)
        decision = self.method.on_epoch(Report(row, self._measure))
        self._obey(decision)
        self.sums = RunningMeans()
        clock.epoch, clock.step = clock.epoch + 1, 0
        if isinstance(decision, Stop):
            self.over, row["stopped"] = decision.why, decision.why
        if self.world.main:
            self.watcher.epoch(row)
        if better:
            self._save("best")
        self._save("last")

    @torch.no_grad()
    def _clean_pass(self) -> None:
        """The epoch's clean images through the model once more, for an average's BatchNorm."""
        clock = self.method.clock
        for step in range(clock.steps):
            self.method.model(self._formatted(self.data.batch(clock.epoch, step)).x)
        self.world.average_norms(self.method.model)

    # Validation and selection.

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The network as it is validated and evaluated: the average if there is one, else the live model."""
        average = next((average for average in self.averages if average.ready), None)
        with average.applied(self.method.model) if average else nullcontext():
            yield self.method.model

    def _validate(self, row: dict[str, Any]) -> bool:
        """Put the figures of the held-out part into the row. Returns whether this epoch is the best so far."""
        with self.evaluated() as network:
            row.update(self.validation.figures(network))
        # Equally robust epochs are told apart by clean accuracy, and of equals in both the first is kept.
        val = row["val"]
        score, clear = val.get("union", val["pgd"]), val["clean"]
        row["best"] = better = (score, clear) > (self.best["score"], self.best["clean"])
        if better:
            self.best = {"score": score, "clean": clear, "epoch": row["epoch"], "n": val["n"]}
        return better

    def _measure(self, **changes: Any) -> float:
        """What `on_epoch` may ask: accuracy of the live model on the held-out part under a changed threat."""
        return self.validation.accuracy(self.method.model, **changes)

    def _obey(self, decision: Decision | None) -> None:
        if isinstance(decision, Keep):
            self.kept[decision.name] = _copy(
                {"model": self.method.model.state_dict(), "optimizer": {g.name: g.state() for g in self.groups}}
            )
        elif isinstance(decision, Restore):
            kept = self.kept[decision.name]
            if "model" in decision.parts:
                self.method.model.load_state_dict(kept["model"])
            if "optimizer" in decision.parts:
                for group in self.groups:
                    group.optimizer.load_state_dict(_copy(kept["optimizer"][group.name]))

    # State.

    def _save(self, name: str) -> None:
        self.updater.verify()
        if self.world.main:
            self.watcher.save(name, self.best_state() if name == "best" else self.state())

    def best_state(self) -> dict[str, Any]:
        """What evaluation needs of the selected epoch."""
        with self.evaluated() as network:
            return {"model": _copy(network.state_dict()), "epoch": self.best["epoch"], "best": dict(self.best)}

    def state(self) -> dict[str, Any]:
        """Everything: a run resumed from it is bit-identical to one that was never disturbed."""
        clock = self.method.clock
        with self.evaluated() as network:
            model = (
                _copy(network.state_dict()) if any(average.ready for average in self.averages) else network.state_dict()
            )
        return {
            "model": model,
            "epoch": clock.epoch,
            "step": clock.step,
            "method": self.method.state_dict(),
            "optimizers": {group.name: group.state() for group in self.groups},
            "averages": [{"values": average.values, "updates": average.updates} for average in self.averages],
            "kept": self.kept,
            "sums": self.sums.state(),
            "best": dict(self.best),
            "seconds": self.seconds,
            "over": self.over,
            "world": self.world.size,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Stand where the state was taken."""
        clock = self.method.clock
        self.method.load_state_dict(state["method"])
        for group in self.groups:
            group.optimizer.load_state_dict(state["optimizers"][group.name])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.values, average.updates = saved["values"], saved["updates"]
        self.kept, self.best = state["kept"], state["best"]
        self.sums.load(state["sums"], self.world.device)
        self.seconds, self.over = state["seconds"], state["over"]
        clock.epoch, clock.step = state["epoch"], state["step"]


def _copy(value: Any) -> Any:
    """A deep copy of containers of tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(part) for part in value)
    return value
