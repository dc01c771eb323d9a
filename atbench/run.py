"""One run from configuration to report, top to bottom: read this file to know the program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from atbench import assemble, config, sweep
from atbench.data import Source
from atbench.environment import environment, facts
from atbench.errors import AtbenchError, DataError, NumericalError
from atbench.evaluation import Plan, Victim, evaluate as evaluate_network, save as save_record, weights_sha256
from atbench.folder import fresh, now, owned, set_status, write_json, write_text
from atbench.methods import Stage
from atbench.reporting import report
from atbench.reporting.terminal import Progress, echo, summary
from atbench.reporting.tracker import Tracker, truncate
from atbench.resume import changed, target_of
from atbench.signals import Flag, watched
from atbench.training import Trainer, World, checkpoint, world

METRICS = "metrics.jsonl"


def train(composed: DictConfig) -> float:
    """`atbench train`: returns the selected epoch's PGD accuracy on the held-out split, which is what a sweeper maximises."""
    resumed = Path(composed.resume) if composed.resume else None
    cfg = changed(resumed, composed, config.as_typed()) if resumed else config.resolve(composed)
    warnings = config.check(cfg)
    with threads(cfg.threads), world(cfg.device) as here, watched() as signal:
        source = assemble.make_source(cfg)
        run = Run.prepare(cfg, source, here, signal)
        run.announce(resumed, warnings)
        folder = resumed or run.open()
        with run.owning(folder):
            trainer = run.fit()
            records = run.evaluate(cfg.eval.checkpoints)
            run.finish(trainer, records)
        return float(trainer.best["score"])


def evaluate(composed: DictConfig) -> float:
    """`atbench eval`: attacks the checkpoints of a run again, into its folder; returns the last one's accuracy under the most steps."""
    asked = config.resolve(composed)
    folder, names, saved = target_of(asked)
    cfg = OmegaConf.create({**saved, "eval": asked.eval, "seed": asked.seed, "device": asked.device})
    with threads(asked.threads), world(cfg.device) as here:
        run = Run(cfg, assemble.make_source(cfg), here, folder, Flag())
        records = run.evaluate(names)
        if here.main:
            report.write(folder)
            summary(records, folder, [f"atbench report {folder}"], Console())
        return float(records[-1]["steps"][-1]["accuracy"])


@dataclass
class Run:
    """A configuration, its data set, this process among its peers, and the folder that all of it goes to."""

    cfg: DictConfig
    source: Source
    world: World
    folder: Path
    signal: Flag
    label: str = ""
    tracker: Tracker | None = None

    @classmethod
    def prepare(cls, cfg: DictConfig, source: Source, here: World, signal: Flag) -> Run:
        return cls(cfg, source, here, Path(cfg.runs), signal)

    def announce(self, resumed: Path | None, warnings: list[str]) -> None:
        """Assemble everything once, so that what cannot work is refused before a folder exists; then say what will run."""
        data = assemble.make_data(self.cfg, self.source, self.world)
        method = assemble.make_method(self.cfg, assemble.make_model(self.cfg, self.source), data, self.world)
        assemble.make_groups(self.cfg, method)
        self.facts = assemble.describe(self.cfg, self.source, data, method, self.world)
        if self.world.main:
            console = Console(stderr=True)
            echo(facts(self.cfg, self.facts, resumed), console)
            for warning in warnings:
                console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)

    def open(self) -> Path:
        """A folder of its own for a new run, with everything that explains it; the same on all processes."""
        name = self.cfg.name or f"{self.cfg.dataset.about.name}-{self.cfg.method.about.name}-s{self.cfg.seed}"
        folder = self.world.share_object(fresh(sweep.current() or Path(self.cfg.runs), name) if self.world.main else None)
        if self.world.main:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(self.cfg))
            write_text(folder / "as_typed.yaml", OmegaConf.to_yaml({"argv": config.as_typed()}))
            write_json(folder / "environment.json", environment(self.cfg, self.source, self.facts))
        return Path(folder)

    @contextmanager
    def owning(self, folder: Path) -> Iterator[None]:
        """Hold the folder while the run runs, and write into it how it ended."""
        self.folder = folder
        if not self.world.main:
            yield
            return
        with owned(folder):
            set_status(folder, state="running", started=now(), exit_code=None, message="", ended=None)
            try:
                yield
            except BaseException as error:
                code = error.exit_code if isinstance(error, AtbenchError) else 130 if isinstance(error, KeyboardInterrupt) else 1
                state = "diverged" if isinstance(error, NumericalError) else "interrupted" if code >= 75 else "failed"
                set_status(folder, state=state, exit_code=code, message=str(error) or type(error).__name__, ended=now())
                if self.tracker:
                    self.tracker.close(code)
                raise
            set_status(folder, state="done", exit_code=0, ended=now())
            if self.tracker:
                self.tracker.close(0)

    # Training.

    def fit(self) -> Trainer:
        """Train to the end, from the last checkpoint if there is one, with the runs that the method asks for before it."""
        cfg, here = self.cfg, self.world
        data = assemble.make_data(cfg, self.source, here)
        method = assemble.make_method(cfg, assemble.make_model(cfg, self.source), data, here)
        state = self._last()
        if state is None:
            method.begin({name: self._stage(name, stage) for name, stage in method.stage0().items()})
        if here.main:
            truncated = state["metrics"] if state else 0
            truncate(self.folder / METRICS, truncated)
            self.tracker = self._tracker()
        total = data.steps * cfg.train.epochs
        done = (state["epoch"] * data.steps + state["step"]) if state else 0
        progress = Progress(
            total, cfg.train.epochs, done=done, epoch=done // data.steps, draw=here.main, label=self.label
        )
        with progress:
            trainer = assemble.make_trainer(cfg, method, data, here, _Watcher(self, progress), self.signal)
            if state:
                trainer.load(state)
            trainer.fit()
        return trainer

    def _tracker(self) -> Tracker:
        group = parent.name if (parent := sweep.current()) else None
        logger = None if self.label or not self.cfg.logger else OmegaConf.to_container(self.cfg.logger)
        return Tracker(self.folder, logger, config.plain(self.cfg), self.folder.name, group)

    def _last(self) -> dict[str, Any] | None:
        path = self.folder / "checkpoints" / "last.pt"
        if not path.exists() and not checkpoint.previous(path).exists():
            return None
        state, warning = checkpoint.latest(path, self.world.device)
        if warning and self.world.main:
            Console(stderr=True).print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)
        return state

    def _stage(self, name: str, stage: Stage) -> nn.Module:
        """Train what a method asked for first, under the run, by the hash of its configuration: done once, resumed by itself."""
        cfg = OmegaConf.create(config.plain(self.cfg))
        cfg.method, cfg.plus = stage.method, {}
        cfg.model = {**cfg.model, **stage.model}
        cfg.seed = cfg.seed + stage.offset
        cfg.train.epochs = max(1, round(stage.epochs * cfg.train.epochs))
        cfg.train.groups = {}
        resolved = config.plain(cfg)
        trained = {key: resolved[key] for key in ("seed", "dataset", "model", "attack", "method", "train")}
        digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.folder / "stages" / f"{name}-{digest}"
        run = Run(cfg, self.source, self.world, folder, self.signal, label=f"{self.label} stage {name}".strip())
        if self.world.main and not folder.exists():
            write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
        self.world.barrier()
        with run.owning(folder):
            trainer = run.fit()
        with trainer.evaluated() as network:
            return network

    # Evaluation.

    def evaluate(self, names: list[str]) -> list[dict[str, Any]]:
        """Measure checkpoints on the test split: the only place that reads it."""
        test = self.source.test().to(self.world.device)
        plan = self._plan()
        records = []
        for name in names:
            state = checkpoint.read(self.folder / "checkpoints" / f"{name}.pt", self.world.device)
            network = assemble.make_model(self.cfg, self.source).to(self.world.device)
            network.load_state_dict(state["model"])
            victim = Victim(network, self.cfg.eval.batch_size, self.world.rank, self.world.size, self.world.sum)
            figures, outcomes = evaluate_network(victim, test, plan)
            record = {
                "schema": 1,
                "checkpoint": name,
                "epoch": state["epoch"],
                "split": "test",
                **figures,
                "weights_sha256": weights_sha256(network),
                "data_sha256": test.sha256(),
                "versions": {"torch": torch.__version__},
            }
            if self.world.main:
                save_record(self.folder / "evaluation", name, record, outcomes)
            records.append(record)
        return records

    def _plan(self) -> Plan:
        chosen = self.cfg.eval
        threat = assemble.make_threat(
            self.cfg, max(chosen.steps), chosen.restarts, chosen.objective, chosen.step_size
        )
        return Plan(threat, list(chosen.steps), list(chosen.eps_grid), chosen.eps_steps, chosen.limit)

    def finish(self, trainer: Trainer, records: list[dict[str, Any]]) -> None:
        """Report, mirror, and the last words on the terminal."""
        if not self.world.main:
            return
        clock = trainer.method.clock
        set_status(self.folder, epoch=clock.epoch, epochs=clock.epochs, train_seconds=round(trainer.seconds, 2))
        report.write(self.folder)
        if self.tracker:
            self.tracker.summary(records)
        commands = [f"atbench eval {self.folder} eval.restarts=5", f"atbench report {self.folder} OTHER_RUN"]
        summary(records, self.folder, commands, Console())


class _Watcher:
    """Passes what the trainer tells on to terminal, metrics.jsonl and checkpoints. Only the main process writes."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress

    def advance(self, examples: int, attack_share: float) -> None:
        self.progress.advance(1, examples)

    def epoch(self, row: dict[str, Any]) -> None:
        self.progress.epoch(row)
        if self.run.tracker:
            self.run.tracker.log(row)
        set_status(self.run.folder, epoch=row["epoch"], epochs=row["epochs"])

    def save(self, name: str, state: dict[str, Any]) -> None:
        position = self.run.tracker.position() if self.run.tracker else 0
        content = {"schema": 1, **state, "config": config.plain(self.run.cfg), "metrics": position}
        checkpoint.save(self.run.folder / "checkpoints" / f"{name}.pt", content, keep_previous=name == "last")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """A block with so many CPU threads; None leaves torch's own choice."""
    if count is None:
        with nullcontext():
            yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
