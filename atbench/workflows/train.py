"""One run from configuration to report, top to bottom: read this file to know the program."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from atbench.config import argv, validate, values
from atbench.config.untrusted import target_overrides
from atbench.data import Images, Source
from atbench.errors import DataError, exit_code
from atbench.methods import Stage
from atbench.reporting import report
from atbench.reporting.console import Progress, echo, notices, summary
from atbench.reporting.metrics_log import MetricsLog, truncate
from atbench.runs import sweep
from atbench.runs.run_dir import accounted, fresh, now, read_json, set_status, write_json, write_text
from atbench.runs.signals import Flag, leaving, watched
from atbench.training import Trainer, World, checkpoint, threads, world
from atbench.workflows import factory
from atbench.workflows.environment import NOTED, compared, environment, facts
from atbench.workflows.eval_plan import make_plan
from atbench.workflows.evaluate import checkpoints
from atbench.workflows.resume import changed, finished, refuse_other, twin

METRICS = "metrics.jsonl"
#: The parts of `last.pt`.
STATE = (
    "averages", "best", "config", "epoch", "kept", "method", "metrics", "model", "optimizers", "over", "seconds",
    "step", "sums", "world",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run. score: the selected epoch's PGD accuracy on the held-out split, for a sweeper to maximise."""

    folder: Path
    score: float

    def __float__(self) -> float:
        return self.score


def train(composed: DictConfig) -> Result:
    """`atbench train`."""
    cfg, resumed = chosen(composed)
    if resumed and (score := finished(resumed)) is not None:
        if os.environ.get("RANK", "0") == "0":
            done = f"{resumed} is done; `atbench report {resumed}` shows it, `atbench eval {resumed}` measures it again"
            Console(stderr=True).print(done, soft_wrap=True, highlight=False, markup=False)
        return Result(resumed, score)
    warnings = validate.check(cfg)
    with threads(cfg.threads), world(cfg.device) as here, watched() as signal:
        source = factory.shared_source(cfg, here)
        tests: list[Images] = []  # the main process has it until `foreseen` takes it: training is given no test data
        here.from_main(lambda: tests.append(source.refuse_unfit()))
        run = Run(cfg, source, here, signal, resumed or Path())
        state = run.last() if resumed else None
        # Everything is built before a folder exists: what cannot work is refused and leaves nothing.
        trainer = run.prepare(fresh=state is None)
        about = factory.describe(cfg, run.source, trainer)
        found, notes = here.from_main(lambda: run.surroundings(about, resumed, state))
        warnings += here.from_main(lambda: run.foreseen(trainer, tests.pop()))
        run.announce(about, resumed, [*warnings, *notes])
        with run.owning(resumed or run.open(found)):
            run.note(found, notes)
            run.fit(trainer, state)
            with leaving(f"atbench train resume={run.folder}", run.folder, here.agree(signal())):
                records = run.evaluate(cfg.eval.checkpoints)
                run.finish(trainer, records)
        return Result(run.folder, float(trainer.best["score"]))


def chosen(composed: DictConfig) -> tuple[DictConfig, Path | None]:
    """What is to run, and the folder of the run if it was begun before: by `resume=`, or as a job of this sweep."""
    if composed.resume:
        folder = Path(composed.resume)
        return changed(folder, composed, sweep.overrides()), folder
    cfg = values.resolve(composed)
    return cfg, twin(parent, cfg) if (parent := sweep.current()) else None


@dataclass
class Run:
    """A configuration, its data set, this process among its peers, and the folder that all of it goes to."""

    cfg: DictConfig
    source: Source
    world: World
    signal: Flag
    folder: Path = Path()
    label: str = ""
    tracker: MetricsLog | None = None
    progress: Progress | None = None

    def prepare(self, fresh: bool) -> Trainer:
        """Data, model, method, optimizers: the trainer at its beginning, from published weights if a run begins so."""
        cfg, here = self.cfg, self.world
        data, model = factory.make_data(cfg, self.source, here), factory.make_model(cfg, self.source)
        if fresh and cfg.weights:
            factory.start_from(model, Path(cfg.weights))
        method = factory.make_method(cfg, model, data, here)
        return factory.make_trainer(cfg, method, data, here, self, self.signal)

    def foreseen(self, trainer: Trainer, test: Images) -> list[str]:
        """Make the plan of the evaluation that is to follow, so that what it cannot do is refused before training; say
        what else is doubtful.
        """
        notes = make_plan(self.cfg, self.source, self.world, test).notes
        return [*notes, *factory.doubts(trainer.method, trainer.data, test)]

    def surroundings(
        self, about: dict[str, Any], resumed: Path | None, state: dict[str, Any] | None
    ) -> tuple[dict[str, Any], list[str]]:
        """What environment.json says of this run; of a resumed one, what has changed since it was written."""
        found = environment(self.cfg, self.source, about)
        if not resumed:
            return found, []
        before = read_json(resumed / "environment.json")
        if state:
            before = {**before, "processes": state["world"]} if before else before
        return found, compared(before, found, begun=state is not None)

    def announce(self, about: dict[str, Any], resumed: Path | None, warnings: list[str]) -> None:
        """Say what will run."""
        if self.world.main:
            console = Console(stderr=True)
            echo(facts(self.cfg, about, resumed), console)
            notices(warnings, console)

    def open(self, found: dict[str, Any]) -> Path:
        """A folder of its own for a new run, with everything that explains it; the same on all processes."""
        name = self.cfg.name or f"{self.cfg.dataset.about.name}-{self.cfg.method.about.name}-s{self.cfg.seed}"
        folder = self.world.from_main(lambda: fresh(sweep.current() or Path(self.cfg.runs), name))
        if self.world.main:
            typed = {"argv": argv.as_typed(), "overrides": sweep.overrides()}
            write_text(folder / "config.yaml", OmegaConf.to_yaml(self.cfg))
            write_text(folder / "as_typed.yaml", OmegaConf.to_yaml(typed))
            write_json(folder / "environment.json", found)
        return folder

    def note(self, found: dict[str, Any], notes: list[str]) -> None:
        """Add to environment.json under what other conditions a run goes on."""
        path = self.folder / "environment.json"
        if self.world.main and notes and (before := read_json(path)):
            entry = {"started": now(), **{key: found[key] for key in NOTED if before.get(key) != found[key]}}
            write_json(path, {**before, "resumed": [*before.get("resumed", []), entry]})

    @contextmanager
    def owning(self, folder: Path) -> Iterator[None]:
        """Hold the folder while the run runs, and write into it how it ended."""
        self.folder = folder
        if not self.world.main:
            yield
            return
        try:
            with accounted(folder):
                yield
        except BaseException as error:
            if self.tracker:
                self.tracker.close(exit_code(error))
            raise
        if self.tracker:
            self.tracker.close(0)

    # Training.

    def fit(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Train to the end, from the state of a checkpoint; without one after the runs that the method asks for."""
        method, clock = trainer.method, trainer.method.clock
        if state is None:
            method.load_pretrained({name: self._stage(name, stage) for name, stage in method.pretraining().items()})
        else:
            self._load(trainer, state)
        if self.world.main:
            truncate(self.folder / METRICS, state["metrics"] if state else 0)
            self.tracker = self._tracker()
        total, done = clock.epochs * clock.steps, clock.epoch * clock.steps + clock.step
        self.progress = Progress(
            total, clock.epochs, done=done, epoch=clock.epoch, draw=self.world.main, label=self.label
        )
        with self.progress:
            trainer.fit()

    # What the trainer tells (`Watcher`): passed on to terminal, metrics.jsonl and checkpoints.

    def advance(self, examples: int, attack_share: float) -> None:
        if self.progress:
            self.progress.advance(1, examples)

    def epoch(self, row: dict[str, Any]) -> None:
        if self.progress and self.tracker:
            self.progress.epoch(row)
            self.tracker.log(row)
        set_status(self.folder, epoch=row["epoch"], epochs=row["epochs"])

    def save(self, name: str, state: dict[str, Any]) -> None:
        position = self.tracker.position() if self.tracker else 0
        content = {**state, "config": values.recorded(self.cfg), "metrics": position}
        checkpoint.save(self.folder / "checkpoints" / f"{name}.pt", content, keep_previous=name == "last")

    def _tracker(self) -> MetricsLog:
        group = parent.name if (parent := sweep.current()) else None
        logger = None if self.label or not self.cfg.logger else values.plain(self.cfg.logger)
        return MetricsLog(self.folder, logger, values.recorded(self.cfg), self.folder.name, group)

    def last(self) -> dict[str, Any] | None:
        """What the last checkpoint holds, or None if there is none yet. Raises DataError for one that is gone, or that
        is not of this run.
        """
        path = self.folder / "checkpoints" / "last.pt"
        if not path.exists() and not checkpoint.previous(path).exists():
            if (metrics := self.folder / METRICS).is_file() and metrics.read_bytes().count(b"\n") > 1:
                raise DataError("checkpoint", path, f"is gone, and {METRICS} has epochs after it", "restore it")
            return None
        state, warning = checkpoint.latest(path, self.world.device, STATE)
        refuse_other(state["config"], self.cfg, path)
        if state["best"]["epoch"] >= 0:
            checkpoint.read(path.with_name("best.pt"), needs=("model", "epoch"))
        if warning and self.world.main:
            notices([warning], Console(stderr=True))
        return state

    def _load(self, trainer: Trainer, state: dict[str, Any]) -> None:
        try:
            trainer.load(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as fault:
            path, said = self.folder / "checkpoints" / "last.pt", (str(fault).splitlines() or [""])[0]
            raise DataError("checkpoint", path, f"does not fit its run ({said})", "use another checkpoint") from fault

    def _stage(self, name: str, stage: Stage) -> nn.Module:
        """Train what a method asked for first, kept by the hash of its configuration: done once, resumed by itself."""
        cfg = OmegaConf.create(values.recorded(self.cfg))
        cfg.method, cfg.plus = stage.method, {}
        cfg.model = {**cfg.model, **stage.model}
        cfg.seed = cfg.seed + stage.offset
        cfg.train.epochs = max(1, round(stage.epochs * cfg.train.epochs))
        cfg.train.groups = {}
        resolved = values.plain(cfg)
        trained = {key: resolved[key] for key in ("seed", "dataset", "model", "attack", "method", "train")}
        digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.folder / "stages" / f"{name}-{digest}"
        label = f"{self.label} stage {name}".strip()
        run = Run(cfg, self.source, self.world, self.signal, folder, label)
        if self.world.main and not folder.exists():
            write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
        self.world.barrier()
        trainer = run.prepare(fresh=False)
        with run.owning(folder):
            run.fit(trainer, run.last())
            if self.world.main:
                run.done(trainer, exit_code=0)
        with trainer.evaluated() as network:
            if stage.best:
                path = folder / "checkpoints" / "best.pt"
                network.load_state_dict(checkpoint.read(path, self.world.device)["model"])
            return network

    # Evaluation.

    def evaluate(self, names: list[str]) -> list[dict[str, Any]]:
        """Measure checkpoints on the test split."""
        return checkpoints(self.cfg, self.source, self.world, self.folder, names)

    def finish(self, trainer: Trainer, records: list[dict[str, Any]]) -> None:
        """Report, mirror, and the last words on the terminal."""
        if not self.world.main:
            return
        self.done(trainer)
        report.write(self.folder)
        if self.tracker:
            self.tracker.summary(records)
        set_status(self.folder, exit_code=0, ended=now())  # until then `resume=` comes back to the report
        others = sweep.current() or f"{self.folder} OTHER_RUN"
        again = target_overrides(values.recorded(self.cfg))
        commands = [f"atbench eval {self.folder} eval=auto{again}", f"atbench report {others}"]
        summary(records, self.folder, commands, Console())

    def done(self, trainer: Trainer, exit_code: int | None = None) -> None:
        """Write down that the work has come to its end; without an exit code all but its report."""
        clock = trainer.method.clock
        ending = {"epoch": clock.epoch, "epochs": clock.epochs, "train_seconds": round(trainer.seconds, 2)}
        score = float(trainer.best["score"])
        set_status(self.folder, state="done", exit_code=exit_code, ended=now(), score=score, **ending)
