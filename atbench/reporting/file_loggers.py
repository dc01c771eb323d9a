"""Loggers that write files for other programs into the run folder: CSV and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atbench.reporting.logged_values import scalars, summary_values
from atbench.runs.run_dir import write_text


class CsvLogger:
    """`metrics.csv`: one row an epoch, one column for each measurement, empty where an epoch has none.

    It is made anew from metrics.jsonl after every epoch, since a later epoch may have further columns, and a resumed
    run fewer rows.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self._path, self._source = folder / "metrics.csv", source

    def log(self, row: Mapping[str, Any]) -> None:
        if row.get("event") != "epoch":
            return
        lines = [json.loads(line) for line in self._source.read_text(encoding="utf-8").splitlines()]
        table = [{"epoch": each["epoch"], **scalars(each)} for each in lines if each.get("event") == "epoch"]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for each in table for key in each)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_text(self._path, text.getvalue())

    def summary(self, records: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        """Nothing: accuracies stand in the records."""

    def close(self, exit_code: int) -> None:
        """Nothing: no file is open."""


class TensorBoardLogger:
    """Event files in `tensorboard/`, with the epoch as the axis. Needs the extra atbench[tensorboard]."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only runs that write event files pay for it

        self._folder, self._open = folder / "tensorboard", SummaryWriter
        self._writer: Any = None

    def log(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:  # what a killed run wrote of this epoch and later ones is not shown
            self._writer = self._open(str(self._folder), purge_step=row["epoch"])
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def summary(self, records: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        self._writer = self._writer or self._open(str(self._folder))
        for record in records:
            for name, value in summary_values(record):
                if isinstance(value, float):
                    self._writer.add_scalar(f"{record['checkpoint']}/{name}", value, record["epoch"] or 0)

    def close(self, exit_code: int) -> None:
        if self._writer is not None:
            self._writer.close()
