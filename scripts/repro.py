"""Rows of the reproduction: trained, attacked, and written to `results/<tier>/<row>.json` (docs/reproduction.md).

    python -m scripts.repro table1                       the survey's Table 1, tier smoke
    python -m scripts.repro trades --tier short          one row; any method of `atbench list methods` may be one
    python -m scripts.repro fastat --tier paper          the FastAT Benchmark's table in our engine
    python -m scripts.repro ladder                       what a recipe adds to PGD-AT and TRADES, rung by rung
    python -m scripts.repro --readme                     the tables of README.md and docs/reproduction.md from results/

A row that is done is not made again, and one that was cut off goes on. Runs lie in folders named by a hash of their
configuration, so that a changed row is made anew. What fails is tried a second time, and named at the end with its log:
exit code 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType

from atbench.config.hydra_errors import composition_error, is_composition_error
from atbench.config.registry import conf_dir, options
from atbench.errors import AtbenchError, ConfigError
from atbench.reporting.reproduction import TIERS, band, read_result
from atbench.runs.run_dir import write_json
from scripts.ladder_table import write_ladder
from scripts.repro_results import (
    AUTOATTACK,
    RESULTS,
    autoattack_record,
    config_sha256,
    pgd_record,
    radius_words,
    row_result,
    write_readme,
)
from scripts.repro_rows import HOW, Row, rows_of, seeds_of
from scripts.table_runs import done, run_atbench, train

TOLD_DONE, STOPPED = "done", "stopped"


@dataclass(frozen=True)
class Job:
    """One training of a seed, and the rows that are read from it."""

    seed: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return f"{self.rows[0].home} seed {self.seed}"


@dataclass(frozen=True)
class Runner:
    """Makes rows of one tier. stop: set when a signal has come, after which nothing is begun."""

    tier: str
    seeds: tuple[int, ...]
    runs: Path
    data_dir: Path
    results: Path
    stop: Event = field(default_factory=Event)

    def jobs(self, rows: Sequence[Row]) -> list[Job]:
        """The trainings of these rows, each once, seed by seed of a row."""
        shared: dict[Path, list[Row]] = {}
        for row in rows:
            shared.setdefault(row.home, []).append(row)
        return [Job(seed, tuple(rows)) for rows in shared.values() for seed in self.seeds]

    def home(self, row: Row, seed: int) -> Path:
        """The folder of a training: another one after a change of its configuration."""
        return self.runs / self.tier / f"{row.home}-{self.config(row)[:8]}-s{seed}"

    def config(self, row: Row) -> str:
        """Its hash. Raises ConfigError where Hydra refuses it."""
        words = (*row.words, *pgd_words(row, self.tier))
        try:
            return config_sha256(words)
        except Exception as error:
            if not is_composition_error(error):
                raise
            choices = partial(options, folders=[conf_dir()])
            raise composition_error(error, ["train", *words], choices) from error

    def attempt(self, job: Job) -> str:
        """Make a job's run and evaluations; once more where that fails. Returns what to tell."""
        for _ in range(2):
            told = self.measure_all(job)
            if told == TOLD_DONE or self.stop.is_set():
                break
        return told

    def measure_all(self, job: Job) -> str:
        """The rows of a job, one after the other, until one fails."""
        for row in job.rows:
            try:
                told = STOPPED if self.stop.is_set() else self.measure(row, job.seed)
            except AtbenchError as error:
                told = str(error)
            if told != TOLD_DONE:
                return told
        return TOLD_DONE

    def measure(self, row: Row, seed: int) -> str:
        """Train and attack one row, as far as that is not done."""
        told, run = self.trained(row, seed)
        if run is None or self.complete(row, seed, run):
            return told
        if self.stop.is_set():
            return STOPPED
        return run_atbench(self.home(row, seed), ["eval", str(run), *autoattack_words(row, self.tier, run)])

    def trained(self, row: Row, seed: int) -> tuple[str, Path | None]:
        """Train one row, as far as that is not done. Returns what to tell, and the finished run if there is one."""
        told, record, home = TOLD_DONE, pgd_record(row, self.tier), self.home(row, seed)
        if done(home, record) is None:
            paths = [f"data_dir={self.data_dir}", f"seed={seed}", "logger=none"]
            told = train(home, [*row.words, *paths], pgd_words(row, self.tier))
        run = done(home, record) if told == TOLD_DONE else None
        if told == TOLD_DONE and run is None:
            told = f"left no {record}, see {home}/log.txt"
        return told, run

    def complete(self, row: Row, seed: int, run: Path) -> bool:
        """Whether nothing is left to attack: AutoAttack runs on the first seeds alone."""
        asked = seed in self.seeds[: HOW[self.tier].autoattack_seeds]
        return not asked or (run / autoattack_record(row, self.tier)).is_file()

    def write(self, row: Row) -> str:
        """Write a row's JSON if all its seeds are done. Returns what to tell of a peer's band, "" without one."""
        found = {seed: done(self.home(row, seed), pgd_record(row, self.tier)) for seed in self.seeds}
        runs = {seed: run for seed, run in found.items() if run and self.complete(row, seed, run)}
        if len(runs) < len(self.seeds):
            return ""
        path = self.results / self.tier / row.table / f"{row.key}.json"
        words = command(row, self.tier, runs)
        write_json(path, row_result(row, self.tier, runs, words, self.config(row)))
        limits = band(read_result(path), row.peer)
        return f"{row.key}: AutoAttack {limits.ours:.2f}, {limits.text}" if limits else ""

    def run(self, jobs: Sequence[Job], at_once: int) -> dict[str, str]:
        """Run the jobs and write each row as soon as it is complete. Returns what to tell of those that failed."""
        told = dict[str, str]()
        first, *others = jobs
        self.tell(first, self.attempt(first), told)  # alone: it fetches the data set, if that is not there
        with ThreadPoolExecutor(at_once) as pool:
            running: Mapping[Future[str], Job] = {pool.submit(self.attempt, job): job for job in others}
            for future in as_completed(running):
                self.tell(running[future], future.result(), told)
        return {name: text for name, text in told.items() if text != TOLD_DONE}

    def tell(self, job: Job, text: str, told: dict[str, str]) -> None:
        bands = list[str]()
        try:
            bands = [text for text in map(self.write, job.rows) if text]
        except AtbenchError as error:  # a record that is damaged, a disk that is full
            text = str(error)
        if text != TOLD_DONE and self.stop.is_set():  # Ctrl-C ended it
            text = STOPPED
        told[job.name] = text
        if text != STOPPED:
            print(f"{job.name}: {'; '.join([text, *bands])}", flush=True)


def pgd_words(row: Row, tier: str) -> list[str]:
    """What the training's own evaluation is given: clean accuracy and PGD, of both checkpoints or, where that is a good
    part of the row's time and no other row reads the run, of the one that is judged.
    """
    steps = min(row.steps, HOW[tier].most_steps or row.steps)
    words = [f"eval.steps=[1,{steps}]", "eval.eps_grid=[0,1]", "eval.audit=0", "eval.examples=false"]
    if tier == "smoke" and not row.training:
        words.append(f"eval.checkpoints=[{row.checkpoint or HOW[tier].checkpoint}]")
    return words + ([f"eval.limit={HOW[tier].images}"] if HOW[tier].images else [])


def autoattack_words(row: Row, tier: str, run: Path) -> list[str]:
    """What the evaluation by AutoAttack is given, behind the run."""
    steps = min(row.steps, HOW[tier].most_steps or row.steps)
    words = ["eval=auto", f"eval.name={AUTOATTACK}", f"eval.steps=[{steps}]", "eval.eps_grid=[0,1]", "eval.audit=0"]
    words += [f"eval.checkpoints=[{row.checkpoint or HOW[tier].checkpoint}]", "eval.examples=false"]
    words += radius_words(run) + (["threads=1"] if tier == "smoke" else [])  # as the training: runs share the cores
    return words + ([f"eval.limit={HOW[tier].autoattack_images}"] if HOW[tier].autoattack_images else [])


def command(row: Row, tier: str, runs: Mapping[int, Path]) -> list[str]:
    """The commands that remake a row by hand. runs: of each seed."""
    many = ["-m"] if len(runs) > 1 else []
    seed = f"seed={','.join(map(str, runs))}"
    training = ["atbench", "train", *many, *row.words, seed, *pgd_words(row, tier)]
    return [
        " ".join(training),
        " ".join(["atbench", "eval", "RUN", *autoattack_words(row, tier, next(iter(runs.values())))]),
    ]


def room(tier: str) -> int:
    """How many runs at a time: one where there is a GPU, and in tiers that want one, else as many as cores."""
    import torch

    if torch.cuda.is_available() or tier != "smoke":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(args: argparse.Namespace) -> int:
    """Run what the command line names. Returns the exit code."""
    rows = rows_of(args.what, args.tier)
    seeds = tuple(int(seed) for seed in args.seeds.split(",")) if args.seeds else seeds_of(args.what, args.tier)
    runner = Runner(args.tier, seeds, args.runs, args.data_dir, args.results)
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        """Begin nothing more and wait for what is running, which Ctrl-C reaches as well."""
        stopped.append(number)
        runner.stop.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = runner.run(runner.jobs(rows), args.jobs or room(args.tier))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + stopped[0]
    for name, text in failed.items():
        print(f"failed: {name}: {text}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", help="table1, fastat, ladder, a row of Table 1 or a method")
    parser.add_argument("--tier", default="smoke", help=", ".join(TIERS))
    parser.add_argument("--seeds", help="as 0,1; default: those of the tier")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: cores for smoke, 1 with a GPU")
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"), help="where the runs lie")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data sets lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows are written")
    parser.add_argument("--readme", action="store_true", help="write the tables of documents, train nothing")
    args = parser.parse_args(argv)
    try:
        if args.readme:
            write_readme()
            write_ladder()
            return 0
        if args.what is None:
            raise ConfigError("repro", "nothing", "no row, table or method is named", "see --help")
        return make(args)
    except AtbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
