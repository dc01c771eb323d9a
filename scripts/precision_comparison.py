"""The third table of docs/cpu.md: training in bf16 against fp32, the same methods and seeds on MNIST and on CIFAR-10.

    python -m scripts.precision_comparison                           train what is missing, then write the table
    python -m scripts.precision_comparison --settings mnist14        a part of it, or --methods trades
    python -m scripts.precision_comparison --write                   from the runs that are there, train nothing

Runs are as in `scripts.cpu_table`; both data sets have to lie in `--data-dir`, or are fetched. A run that is done is
not repeated, and one that was cut off goes on, in its AutoAttack as well. Seeds come one after the other, so that a
part of the time gives a table of fewer seeds. Every evaluation is in fp32.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
import yaml
from scipy.stats import t as student

from atbench.config.registry import conf_dir
from atbench.data.torchvision_sets import published
from scripts.cpu_table import AUTO, AUTO_LAST, DOCUMENT, LAST, PGD
from scripts.table_runs import done, markdown_table, replace_section, run_atbench, train

METHODS = ("pgd_at", "trades", "fast_at")
#: What computes in bf16, and the words for it: (attack, update).
PRECISIONS: Mapping[str, tuple[str, str]] = {
    "fp32": ("fp32", "fp32"),
    "bf16": ("bf16", "bf16"),
}
SEEDS = (0, 1, 2)
SLICE = 10_000
SETTINGS: Mapping[str, Sequence[str]] = {
    "mnist14": ["experiment=cpu"],
    "cifar10": ["experiment=cpu", "dataset=npz", "train.epochs=8", "train.batch_size=128", "train.optimizer.lr=0.05"],
}
CPU_SECONDS = "cpu_seconds"
BEGIN = "<!-- precision, written by a script -->"
HEAD = ["images", "method", "in bf16", "runs", "clean %", "PGD-20 %", "against fp32", "of 500: AutoAttack %"]
HEAD += ["against fp32", "CPU seconds"]


class Cell(NamedTuple):
    """One run of the table."""

    seed: int
    setting: str
    method: str
    precision: str

    def home(self, runs: Path) -> Path:
        return runs / f"{self.setting}-{self.method}-{self.precision.replace(' ', '_')}-s{self.seed}"


class Figures(NamedTuple):
    """What a run came to: accuracies in percent; CPU seconds of training, start and PGD-20, None if it was cut off."""

    clean: float
    pgd: float
    auto: float
    seconds: float | None


def cifar10_slice(data_dir: Path, folder: Path) -> list[str]:
    """The first `SLICE` train images and the test split in a folder, as `dataset=npz` reads them. Returns its words."""
    node = yaml.safe_load((conf_dir() / "dataset" / "cifar10.yaml").read_text(encoding="utf-8"))["source"]
    if not (folder / "test.npz").exists():
        source = published(data_dir, "cifar10", node["classes"], node["mean"], node["std"], 0)
        folder.mkdir(parents=True, exist_ok=True)
        for split, images in (("train", source.train.take(torch.arange(SLICE))), ("test", source.test())):
            np.savez(folder / f"{split}.npz", image=images.x[:].permute(0, 2, 3, 1).numpy(), label=images.y.numpy())
    return [f"dataset.source.path={folder}", *(f"dataset.source.{key}={node[key]}" for key in ("mean", "std"))]


def words(cell: Cell, runs: Path, data_dir: Path) -> list[str]:
    """The words of a run's training."""
    attack, update = PRECISIONS[cell.precision]
    own = [*SETTINGS[cell.setting], f"method={cell.method}", f"seed={cell.seed}", f"data_dir={data_dir}", "logger=none"]
    own += [f"train.precision.attack={attack}", f"train.precision.update={update}"]
    return own + (cifar10_slice(data_dir, runs / "cifar10_slice") if cell.setting == "cifar10" else [])


def measure(cell: Cell, runs: Path, data_dir: Path) -> str:
    """One run's training and evaluations, as far as they are not done. Returns what to tell."""
    home, told = cell.home(runs), "is there"
    if not done(home, LAST):
        whole, before = not list(home.glob("*/checkpoints/last.pt")), cpu_seconds()
        told = train(home, words(cell, runs, data_dir), [*PGD, "eval.checkpoints=[last]"])
        if whole and done(home, LAST):
            (home / CPU_SECONDS).write_text(f"{cpu_seconds() - before:.1f}")
    if (run := done(home, LAST)) and not done(home, AUTO_LAST):
        told = run_atbench(home, ["eval", str(run), "threads=1", *AUTO])
    return f"{home.name}: {told}"


def cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(home: Path) -> Figures | None:
    """What stands in the records of a run, once all of it is done."""
    if not (run := done(home, AUTO_LAST)):
        return None
    last, auto = (json.loads((run / name).read_text()) for name in (LAST, AUTO_LAST))
    clean, pgd, worst = (100 * part["accuracy"] for part in (last["clean"], last["steps"][-1], auto["robust"]))
    seconds = home / CPU_SECONDS
    return Figures(clean, pgd, worst, float(seconds.read_text()) if seconds.exists() else None)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    text = f"{mean(values):.{digits}f}" if values else "–"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def difference(values: Sequence[float]) -> str:
    """The mean of paired differences, with its 95 % interval (Student's t)."""
    if not values:
        return ""
    if len(values) < 2:
        return f"{mean(values):+.1f}"
    reach = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.1f} [{mean(values) - reach:+.1f}, {mean(values) + reach:+.1f}]"


def rows(found: Mapping[Cell, Figures]) -> Iterator[list[str]]:
    """The table: a row a method and precision, and the differences of all methods together."""
    for setting in SETTINGS:
        joint: dict[str, list[tuple[float, float]]] = {}
        for method, precision in product(METHODS, PRECISIONS):
            runs = {seed: found.get(Cell(seed, setting, method, precision)) for seed in SEEDS}
            own = {seed: run for seed, run in runs.items() if run is not None}
            if not own:
                continue
            pairs = list(against_fp32(own, found, setting, method)) if precision != "fp32" else []
            joint.setdefault(precision, []).extend(pairs)
            each = [(run.clean, run.pgd, run.auto) for run in own.values()]
            clean, pgd, auto = (spread(part) for part in zip(*each, strict=True))
            seconds = spread([run.seconds for run in own.values() if run.seconds is not None], 0)
            of_pgd, of_auto = (difference([pair[k] for pair in pairs]) for k in (0, 1))
            start = [setting, f"`{method}`", "–" if precision == "fp32" else precision, str(len(own))]
            yield [*start, clean, pgd, of_pgd, auto, of_auto, seconds]
        for precision, pairs in joint.items():
            if pairs:
                of_pgd, of_auto = (difference([pair[k] for pair in pairs]) for k in (0, 1))
                yield [setting, "all pairs", precision, str(len(pairs)), "", "", of_pgd, "", of_auto, ""]


def against_fp32(
    own: Mapping[int, Figures], found: Mapping[Cell, Figures], setting: str, method: str
) -> Iterator[tuple[float, float]]:
    """By how many points (PGD-20, AutoAttack) each run differs from the fp32 run of its seed, if that is there."""
    for seed, run in own.items():
        if reference := found.get(Cell(seed, setting, method, "fp32")):
            yield run.pgd - reference.pgd, run.auto - reference.auto


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="where the runs lie")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST and CIFAR-10 lie")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="some of them, as a,b")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, as a,b")
    parser.add_argument("--write", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    for option, known in (("settings", SETTINGS), ("methods", METHODS)):
        if unknown := sorted({*getattr(args, option).split(",")} - {*known}):
            parser.error(f"--{option}: there is no {', '.join(unknown)}")
    cells = [Cell(*parts) for parts in product(SEEDS, SETTINGS, METHODS, PRECISIONS)]
    for cell in cells:
        if cell.setting in args.settings.split(",") and cell.method in args.methods.split(",") and not args.write:
            print(measure(cell, args.runs, args.data_dir), flush=True)
    found = {cell: own for cell in cells if (own := figures(cell.home(args.runs)))}
    replace_section(DOCUMENT, markdown_table(HEAD, rows(found)), BEGIN)


if __name__ == "__main__":
    main()
