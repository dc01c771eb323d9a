"""The verbs without a configuration, on plain argparse. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from atbench.config import registry
from atbench.errors import ConfigError, refuse_unknown


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog, "arguments", message, f"see `{self.prog} --help`")


def report(words: list[str]) -> int:
    if words[:1] == ["table1"]:  # a run folder of this name is ./table1
        return _report_table1(words[1:])
    parser = Parser("atbench report", description="Write the report of a run, or compare several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; default: into the run, or ./comparison"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout, and no files")
    parser.add_argument("--baseline", metavar="NAME", help="the method that others are compared with (pgd_at)")
    given = parser.parse_intermixed_args(words)
    report_runs = importlib.import_module("atbench.reporting.report").report_runs
    return int(report_runs(given.runs, given.out, given.json, given.baseline))


def _report_table1(words: list[str]) -> int:
    description = "The survey's Table 1 as printed, what is known of each cell, and our results, as Markdown."
    parser = Parser("atbench report table1", description=description)
    parser.add_argument("settings", nargs="*", metavar="results=DIR", help="the results (default: results); tier=NAME")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write Markdown, HTML, JSON, CSV and LaTeX there")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of Markdown")
    given = parser.parse_intermixed_args(words)
    settings = {"results": "results", "tier": None}
    for word in given.settings:
        key, _, value = word.partition("=")
        if key not in settings or not value:
            raise ConfigError("report table1", word, "there is no such setting", "use results=DIR or tier=NAME")
        settings[key] = value
    table1 = importlib.import_module("atbench.reporting.table1")
    return int(table1.report_table1(Path(str(settings["results"])), settings["tier"], given.out, given.json))


def predict(words: list[str]) -> int:
    parser = Parser("atbench predict", description="Classify pictures, and attack them within the run's eps.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run or of an evaluation, or a checkpoint")
    parser.add_argument(
        "words", nargs="+", metavar="PICTURE", help="picture files; KEY._target_=NAME: a class of yours"
    )
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best (the default), last, epoch_N")
    parser.add_argument("--eps", metavar="EPS", help="another radius than the run's, such as 4/255")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where adversarial pictures go; default: beside each")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="configs that name your own classes")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    given = parser.parse_intermixed_args(words)
    importlib.import_module("atbench.config.argv").remember_argv(["predict", *words], given.config_dir)
    pictures = [Path(word) for word in given.words if "._target_=" not in word]
    verb = importlib.import_module("atbench.workflows.predict").predict_pictures
    return int(verb(given.run, pictures, given.checkpoint, given.eps, given.out, given.json))


def export(words: list[str]) -> int:
    parser = Parser("atbench export", description="Write an evaluated network for others to use.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run or of an evaluation")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best (the default), last, epoch_N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: RUN/export")
    parser.add_argument("--onnx", action="store_true", help="model.onnx as well, checked against onnxruntime")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="configs that name your own classes")
    parser.add_argument("named", nargs="*", metavar="KEY._target_=NAME", help="a class of yours in the run")
    given = parser.parse_intermixed_args(words)
    importlib.import_module("atbench.config.argv").remember_argv(["export", *words], given.config_dir)
    verb = importlib.import_module("atbench.workflows.export").export_run
    return int(verb(given.run, given.checkpoint, given.out, given.onnx))


def list_options(words: list[str]) -> int:
    parser = Parser("atbench list", description="What there is to choose from.")
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help=f"one of {', '.join(registry.KINDS)}; without it, the kinds"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--survey", action="store_true", help="only what the survey (Bai et al. 2021) names")
    parser.add_argument("--benchmark", metavar="NAME", help="of methods: those of a benchmark and ours (fastat)")
    parser.add_argument(
        "--config-dir", "-cd", type=Path, metavar="DIR", help="a folder of configs of your own, listed as well"
    )
    args = parser.parse_intermixed_args(words)
    if args.config_dir is not None and not args.config_dir.is_dir():
        raise ConfigError("--config-dir", args.config_dir, "there is no such folder", "correct the path")
    if args.benchmark is not None:
        refuse_unknown("list --benchmark", args.kind, ["methods"], "list of a benchmark's")
        return registry.show_benchmark(args.benchmark, args.json)
    folders = [registry.conf_dir(), *([args.config_dir] if args.config_dir else [])]
    return registry.show(args.kind, folders, args.json, args.survey)


def doctor(words: list[str]) -> int:
    parser = Parser("atbench doctor", description="What this machine has and lacks.")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder that runs go to")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="the folder of data sets")
    args = parser.parse_args(words)
    return int(importlib.import_module("atbench.cli.doctor").main(args.runs, args.data_dir, args.json))


def bench(words: list[str]) -> int:
    return int(importlib.import_module("atbench.cli.bench").main(words))


PLAIN: Mapping[str, Callable[[list[str]], int]] = {
    "report": report,
    "predict": predict,
    "export": export,
    "list": list_options,
    "doctor": doctor,
    "bench": bench,
}
