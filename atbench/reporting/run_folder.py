"""Run folders read into typed values; what a file does not hold stays absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atbench.config.renamed import renamed_config
from atbench.config.tree import select
from atbench.errors import DataError
from atbench.reporting.headline import select_evaluation
from atbench.reporting.results import EvaluationRecord, read_evaluation
from atbench.runs.run_dir import list_records, read_json

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class RunFolder:
    """The content of a run folder when it was read.

    rows: the epochs of metrics.jsonl; watch: its measurements between steps (`guard`).
    evaluations: by checkpoint, the one that `headline.select_evaluation` chooses; all_evaluations: all of them.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    status: Mapping[str, Any]
    typed: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    watch: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, EvaluationRecord]
    all_evaluations: Mapping[str, tuple[EvaluationRecord, ...]]

    def about(self, group: str, key: str) -> str | None:
        value = select(self.config, f"{group}.about.{key}")
        return None if value is None else str(value)

    @property
    def trained(self) -> bool:
        """Whether the network was trained here; external networks have no method and no epochs."""
        return "method" in self.config

    def name(self, group: str) -> str:
        """The option of a config group, by `about.name` or its class; an external network's name for the method."""
        if group == "method" and not self.trained:
            return str(self.config.get("name") or "unnamed")
        return self.about(group, "name") or str(select(self.config, f"{group}._target_") or "unnamed")

    @property
    def plus(self) -> tuple[str, ...]:
        return tuple(sorted(self.config.get("plus") or {}))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def train_seconds(self) -> float | None:
        seconds = self.status.get("train_seconds", self.environment.get("train_seconds"))
        return None if seconds is None else float(seconds)

    @property
    def status_line(self) -> str:
        """State, epoch, extensions and message on one line."""
        done, of = self.status.get("epoch"), self.status.get("epochs")
        parts = [self.state] + ([f"epoch {done}/{of}"] if done is not None and of is not None else [])
        if marks := self.status.get("extended_at"):
            parts.append(f"extended after epoch {' and '.join(map(str, marks))}: not one schedule")
        return ", ".join(parts) + (f": {self.status['message']}" if self.status.get("message") else "")


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder: every run writes its status first."""
    return (path / "status.json").is_file()


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders among and below `paths`, each once; stages inside a run are not listed."""
    runs: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise DataError("run", path, "there is no such folder", "name a run folder or a folder of runs")
        below = [path] if is_run(path) else runs_below(path)
        if not below:
            raise DataError("run", path, "it holds no run (no status.json)", "name a run folder or a folder of runs")
        runs.update({run.resolve(): run for run in below})
    return list(runs.values())


def runs_below(path: Path) -> list[Path]:
    """The run folders below a folder, by name."""
    runs = []
    for folder, inner, _ in os.walk(path):
        inner.sort()
        if is_run(Path(folder)):
            runs.append(Path(folder))
            inner.clear()
    return runs


def read_run(path: Path) -> RunFolder:
    """The run in `path`. Raises DataError if it is no run folder or a file in it is damaged."""
    if not is_run(path):
        raise DataError("run", path, "it is not a run folder (no status.json)", "name a folder of `atbench train`")
    if not (path / "config.yaml").is_file():
        raise DataError("run", path, "config.yaml is missing", "restore it from a copy, or run again")
    evaluations, rows = read_evaluations(path), _rows(path / "metrics.jsonl")
    return RunFolder(
        path=path,
        config=renamed_config(_yaml(path / "config.yaml")),
        environment=read_json(path / "environment.json"),
        status=read_json(path / "status.json"),
        typed=_yaml(path / "as_typed.yaml"),
        rows=tuple(row for row in rows if row.get("event") == "epoch"),
        watch=tuple(row for row in rows if row.get("event") == "watch"),
        evaluations={name: select_evaluation(records) for name, records in evaluations.items()},
        all_evaluations=evaluations,
    )


def read_evaluations(path: Path) -> dict[str, tuple[EvaluationRecord, ...]]:
    """All records by checkpoint, in the order they were made: best and last first, then epoch_10 after epoch_5."""
    files: dict[str, list[Path]] = {}
    for file in list_records(path):
        files.setdefault(file.stem, []).append(file)
    return {name: tuple(read_evaluation(file) for file in files[name]) for name in sorted(files, key=_place)}


def _place(name: str) -> tuple[int, str, int]:
    """The place of a checkpoint among those of a run."""
    stem, _, number = name.rpartition("_")
    order = CHECKPOINTS.index(name) if name in CHECKPOINTS else len(CHECKPOINTS)
    return (order, stem, int(number)) if number.isdigit() else (order, name, 0)


def _yaml(path: Path) -> dict[str, Any]:
    """Settings read by OmegaConf, which takes `1e-3` for a number; `${oc.env:...}` is not resolved."""
    if not path.is_file():
        return {}
    try:
        value = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as fault:
        raise DataError("file", path, f"not YAML ({fault})", "restore it from a copy, or run again") from fault
    return {str(key): inner for key, inner in value.items()} if isinstance(value, dict) else {}


def _rows(path: Path) -> tuple[dict[str, Any], ...]:
    """All rows of `metrics.jsonl`; a last line that was cut off is ignored, other damage raises DataError."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return tuple(json.loads(line) for line in lines[:-1])  # after the last newline: nothing, or an unfinished row
    except ValueError as fault:
        why = f"a line is not JSON ({fault})"
        raise DataError("file", path, why, "restore it from a copy, or run again") from fault
