"""One training run from configuration to report, top to bottom: read this file to know the program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from atbench.config import argv, validate, values
from atbench.data import Images, Source
from atbench.errors import ConfigError, exit_code
from atbench.evaluation.activity import Activity
from atbench.methods import Method
from atbench.reporting import report
from atbench.reporting.console import print_facts, print_line, print_summary, print_warnings
from atbench.reporting.metrics_log import METRICS, MetricsLog, truncate_log
from atbench.reporting.progress import Progress
from atbench.runs import sweep
from atbench.runs.run_dir import new_run_dir, now, read_json, set_status, status_recorded, write_json, write_text
from atbench.runs.signals import SignalFlag, flag_signals, interrupt_on_signals, naming_command
from atbench.training import Trainer, World, checkpoint, cpu_threads, reused_memory, threads, world
from atbench.workflows import extension, factory, pretraining, resume, teachers
from atbench.workflows.environment import NOTED, environment_changes, environment_record, run_facts
from atbench.workflows.eval_plan import make_plan
from atbench.workflows.evaluate import evaluate_checkpoints
from atbench.workflows.forecast import Forecast, evaluation_passes
from atbench.workflows.layout import layout_warnings
from atbench.workflows.pretraining import PlannedStage


class TrainResult(NamedTuple):
    """A finished run. score: the selected epoch's PGD accuracy on the held-out split, for a sweeper to maximise."""

    folder: Path
    score: float

    def __float__(self) -> float:
        return self.score


def train(composed: DictConfig) -> TrainResult:
    """`atbench train`."""
    cfg, resumed = config_and_folder(composed)
    before = extension.finished_config(resumed, cfg.train.epochs) if resumed else None
    if resumed and not before and (score := resume.finished_score(resumed)) is not None:
        if os.environ.get("RANK", "0") == "0":
            shows, again = argv.shell_line("report", resumed), argv.shell_line("eval", resumed)
            print_line(f"{resumed} is done; `{shows}` shows it, `{again}` evaluates it again", Console(stderr=True))
        return TrainResult(resumed, score)
    warnings = validate.validate_config(cfg)
    with threads(cfg.threads), reused_memory(), world(cfg.device) as processes, flag_signals() as signal:
        source = factory.shared_source(cfg, processes)
        tests: list[Images] = []  # the main process has it until the plan is checked: training is given no test data
        processes.from_main(lambda: tests.append(source.check_trainable()))
        run = Run(cfg, source, processes, signal, resumed or Path())
        state = resume.last_state(cfg, resumed, processes) if resumed else None
        # Everything is built before a folder exists: what cannot work is refused and leaves nothing.
        trainer = run.build_trainer(fresh=state is None)
        earlier = read_json(resumed / "environment.json") if resumed else {}
        cpu_threads.settle(cfg.threads, trainer.method.model, source.shape, trainer.data.batch_size, earlier)
        planned = run.plan_stages(trainer.method)
        pretraining.check(planned, resumed)
        run.measured = teachers.measure_finished(planned, trainer) if state is None else {}
        about = factory.describe_run(cfg, run.source, trainer)
        environment, changes = processes.from_main(lambda: run.check_environment(about, resumed, state))
        warnings += processes.from_main(lambda: run.check_evaluation_plan(trainer, tests.pop()))
        with run.hold_folder(resumed or run.create_folder(environment)):
            run.print_start(about, [*warnings, *changes])
            run.record_resume(environment, changes)
            if before and processes.main:
                extension.record_extension(run.folder, before, cfg.train.epochs)
            again = resume.resume_line(cfg, run.folder)
            with naming_command(again):
                run.fit(trainer, state)
            with interrupt_on_signals(again, run.folder, processes.agree(signal())):
                records = run.evaluate(cfg.eval.checkpoints)
                run.write_report(trainer, records)
        return TrainResult(run.folder, float(trainer.best["score"]))


def config_and_folder(composed: DictConfig) -> tuple[DictConfig, Path | None]:
    """The configuration, and the folder of a run that goes on: named by `resume=`, or a begun job of this sweep."""
    if composed.resume:
        folder = Path(composed.resume)
        return resume.resumed_config(folder, composed, sweep.job_overrides()), folder
    cfg = values.resolve(composed)
    return cfg, resume.find_matching_run(parent, cfg) if (parent := sweep.sweep_folder()) else None


@dataclass
class Run:
    """A run: its configuration, data set, processes and folder; the trainer's `Callbacks`."""

    cfg: DictConfig
    source: Source
    world: World
    signal: SignalFlag
    folder: Path = Path()
    label: str = ""
    log: MetricsLog | None = None
    progress: Progress | None = None
    forecast: Forecast | None = None
    passes: float = 0.0  # of the evaluation, forward passes of one image at most
    measured: dict[str, teachers.Figures] = field(default_factory=dict)  # of teachers that are finished networks

    # Before training.

    def build_trainer(self, fresh: bool) -> Trainer:
        """Data, model, method, optimizers; a fresh run may start from published weights."""
        cfg = self.cfg
        data, model = factory.make_data(cfg, self.source, self.world), factory.make_model(cfg, self.source)
        if fresh and cfg.weights:
            factory.load_initial_weights(model, Path(cfg.weights))
        method = factory.make_method(cfg, model, data, self.world)
        return factory.make_trainer(cfg, method, data, self.world, self, self.signal)

    def check_evaluation_plan(self, trainer: Trainer, test: Images) -> list[str]:
        """Build the plan of the later evaluation, so that what is impossible is refused before training; warnings."""
        plan = make_plan(self.cfg, self.source, self.world, test)
        self.passes = len(self.cfg.eval.checkpoints) * evaluation_passes(plan, len(test))
        said = factory.training_warnings(trainer.method, trainer.data, test)
        return [*plan.notes, *trainer.micro_batches.warnings(), *said, *layout_warnings(self.cfg, trainer)]

    def check_environment(
        self, about: dict[str, Any], resumed: Path | None, state: dict[str, Any] | None
    ) -> tuple[dict[str, Any], list[str]]:
        """The content of environment.json, and warnings of what has changed since a resumed run was started."""
        environment = environment_record(self.cfg, self.source, about)
        if not resumed:
            return environment, []
        before = read_json(resumed / "environment.json")
        if state and before:
            before["processes"] = state["world"]
        return environment, environment_changes(before, environment, begun=state is not None)

    def print_start(self, about: dict[str, Any], warnings: list[str]) -> None:
        """Print what will run, and warnings."""
        if self.world.main:
            console = Console(stderr=True)
            print_facts(run_facts(self.cfg, about, self.folder), console)
            print_warnings(warnings, console)

    def create_folder(self, environment: dict[str, Any]) -> Path:
        """The folder of a new run, with its configuration and environment; the same on all processes."""
        name = self.cfg.name or f"{self.cfg.dataset.about.name}-{self.cfg.method.about.name}-s{self.cfg.seed}"
        folder = self.world.from_main(lambda: new_run_dir(sweep.sweep_folder() or Path(self.cfg.runs), name))
        if self.world.agree(int(not folder.is_dir())):
            if self.world.main:
                folder.rmdir()
            raise ConfigError("runs", self.cfg.runs, "is not the same folder on all nodes", "use one on a shared disk")
        if self.world.main:
            typed = {"argv": argv.as_typed(), "overrides": sweep.job_overrides()}
            write_text(folder / "config.yaml", OmegaConf.to_yaml(self.cfg))
            write_text(folder / "as_typed.yaml", OmegaConf.to_yaml(typed))
            write_json(folder / "environment.json", environment)
        return folder

    def record_resume(self, environment: dict[str, Any], changes: list[str]) -> None:
        """Add to environment.json what has changed when a run is resumed."""
        path = self.folder / "environment.json"
        if self.world.main and changes and (before := read_json(path)):
            entry = {key: environment[key] for key in NOTED if before.get(key) != environment[key]}
            write_json(path, {**before, "resumed": [*before.get("resumed", []), {"started": now(), **entry}]})

    @contextmanager
    def hold_folder(self, folder: Path) -> Iterator[None]:
        """Lock the folder while the run runs; status.json says how it ended."""
        self.folder = folder
        if not self.world.main:
            yield
            return
        code = 0
        try:
            with status_recorded(folder):
                yield
        except BaseException as error:
            code = exit_code(error)
            raise
        finally:
            if self.log:
                self.log.close(code)

    # Training.

    def fit(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Train to the end, from the state of a checkpoint or, at the beginning, after the method's pretraining."""
        method, clock = trainer.method, trainer.method.clock
        if state is None:
            planned = self.plan_stages(method)
            if self.world.main:
                pretraining.record_checkpoints(planned, self.folder)
            networks = {name: self._pretrained(name, each) for name, each in planned.items()}
            teachers.record_teachers(planned, networks, self.measured, trainer, self.folder)
            method.load_pretrained({name: planned[name].stage.handed_over(each) for name, each in networks.items()})
        else:
            resume.load_state(trainer, state, self.folder)
        if self.world.main:
            truncate_log(self.folder / METRICS, state["metrics"] if state else 0)
            self.log = self._open_log()
        total, done = clock.epochs * clock.steps, clock.epoch * clock.steps + clock.step
        self.progress = Progress(
            total, clock.epochs, done=done, epoch=clock.epoch, draw=self.world.main, label=self.label
        )
        self.forecast = Forecast(trainer, self.passes)
        with self.progress:
            trainer.fit()

    # The callbacks of the trainer: terminal, metrics.jsonl, checkpoints.

    def advance(self, examples: int, attack_share: float) -> None:
        if self.progress and self.forecast:
            self.progress.advance(1, examples)
            if said := self.forecast.step():
                self.progress.say(said)

    def validating(self, activity: Activity) -> None:
        if self.progress:
            self.progress.validating(activity)

    def epoch(self, row: dict[str, Any]) -> None:
        if self.progress and self.log:
            self.progress.epoch(row)
            self.log.log(row)
        set_status(self.folder, epoch=row["epoch"], epochs=row["epochs"])

    def watched(self, row: dict[str, Any]) -> None:
        if self.progress and self.log:
            self.progress.watched(row)
            self.log.log(row)

    def say(self, text: str) -> None:
        if self.progress:
            self.progress.say(text)

    def save(self, name: str, state: dict[str, Any]) -> None:
        position = self.log.position() if self.log else 0
        content = {**state, "config": values.recorded(self.cfg), "metrics": position}
        checkpoint.save(self.folder / "checkpoints" / f"{name}.pt", content, keep_previous=name == "last")

    def _open_log(self) -> MetricsLog:
        group = parent.name if (parent := sweep.sweep_folder()) else None
        logger = None if self.label or not self.cfg.logger else values.plain(self.cfg.logger)
        return MetricsLog(self.folder, logger, values.recorded(self.cfg), self.folder.name, group)

    def plan_stages(self, method: Method) -> dict[str, PlannedStage]:
        """The method's stages of pre-training, none of them begun."""
        return pretraining.plan_stages(self.cfg, method.pretraining(), self.source, self.world)

    def _pretrained(self, name: str, planned: PlannedStage) -> nn.Module:
        """The network of a stage, which is a run in a folder of its own: trained once, resumed by itself."""
        if planned.checkpoint is not None:
            return pretraining.read_network(planned, self.world.device)
        folder, label = self.folder / planned.folder, f"{self.label} stage {name}".strip()
        run = Run(planned.cfg, planned.source, self.world, self.signal, folder, label)
        if self.world.main and not folder.exists():
            write_text(folder / "config.yaml", OmegaConf.to_yaml(planned.cfg))
        self.world.barrier()
        trainer = run.build_trainer(fresh=False)
        with run.hold_folder(folder):
            run.fit(trainer, resume.last_state(run.cfg, folder, run.world))
            if self.world.main:
                run.set_done(trainer, exit_code=0)
        with trainer.evaluated() as network:
            if planned.stage.best:
                path = folder / "checkpoints" / "best.pt"
                network.load_state_dict(checkpoint.read(path, self.world.device)["model"])
            return network

    # After training.

    def evaluate(self, names: list[str]) -> list[dict[str, Any]]:
        """Evaluate checkpoints on the test split."""
        return evaluate_checkpoints(self.cfg, self.source, self.world, self.folder, names)

    def write_report(self, trainer: Trainer, records: list[dict[str, Any]]) -> None:
        """Write the report and the logger's summary, print the results."""
        if not self.world.main:
            return
        self.set_done(trainer)
        report.write_report(self.folder, every_format=False)
        if self.log:
            self.log.summary(records)
        set_status(self.folder, exit_code=0, ended=now())  # until then `resume=` comes back to the report
        print_summary(records, self.folder, resume.next_lines(self.cfg, self.folder), Console())

    def set_done(self, trainer: Trainer, exit_code: int | None = None) -> None:
        """Set status.json to done; without an exit code the report is still to come."""
        clock = trainer.method.clock
        progress = {"epoch": clock.epoch, "epochs": clock.epochs, "train_seconds": round(trainer.seconds, 2)}
        score = float(trainer.best["score"])
        set_status(self.folder, state="done", exit_code=exit_code, ended=now(), score=score, **progress)
