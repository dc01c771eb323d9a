"""Metrics log of a run: `metrics.jsonl` in its folder, and the loggers of `logger` beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from atbench.errors import DataError
from atbench.reporting.file_loggers import CsvLogger, TensorBoardLogger
from atbench.reporting.wandb_logger import open_wandb

METRICS = "metrics.jsonl"


class Logger(Protocol):
    """What is told of a run as it goes on: rows of metrics.jsonl, at the end the evaluation's records and pictures."""

    def log(self, row: Mapping[str, Any]) -> None: ...

    def summary(self, records: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None: ...

    def close(self, exit_code: int) -> None: ...


class MetricsLog:
    """The log of one run, on rank 0.

    logger: the config node; `project` opens W&B, `tensorboard` and `csv` their files; None opens nothing. config: the
    resolved configuration as plain containers. group: the id of the sweep that the run belongs to.
    """

    def __init__(
        self, folder: Path, logger: Mapping[str, Any] | None, config: Mapping[str, Any], name: str, group: str | None
    ) -> None:
        self._file = (folder / METRICS).open("ab")
        self._folder = folder
        wandb, chosen = open_wandb(folder, logger, config, name, group), logger or {}
        self._loggers: list[Logger] = [wandb] if wandb else []
        self._loggers += [TensorBoardLogger(folder)] if chosen.get("tensorboard") else []
        self._loggers += [CsvLogger(folder, folder / METRICS)] if chosen.get("csv") else []

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the file and flush; NaN and infinity become null."""
        line = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for logger in self._loggers:
            logger.log(row)

    def position(self) -> int:
        """The offset of the next row, for a checkpoint; all rows before it are on the disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def summary(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Send the evaluation records and the run folder's pictures to the loggers."""
        for logger in self._loggers:
            logger.summary(records, sorted((self._folder / "pictures").glob("*.png")))

    def close(self, exit_code: int = 0) -> None:
        """Close the log; may be called twice."""
        for logger in self._loggers:
            logger.close(exit_code)
        self._file.close()


def truncate_log(path: Path, offset: int) -> None:
    """Cut `path` back to `offset`, the `position()` in a checkpoint; later rows will be written again.

    Raises DataError for a file that is shorter or has no row that ends there.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < offset:
        why = f"it has {size} bytes, the checkpoint needs {offset}"
        raise DataError(METRICS, path, why, "restore it from a copy")
    if offset == size:
        return
    with path.open("r+b") as file:
        if offset:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise DataError(METRICS, path, f"no row ends at byte {offset}", "restore it from a copy")
        file.truncate(offset)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    """The value with NaN and infinity as None, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
