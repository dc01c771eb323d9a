"""One call of the acceptance: its device, its deadline, and the record that the next call goes on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from atbench.runs.run_dir import write_json

ROOT = Path(__file__).resolve().parent.parent.parent


class OutOfTime(BaseException):
    """The call's minutes are over. No Exception: nothing on the way may take it for a failure of its own."""


@dataclass
class Session:
    """Where results go and how long there is; `record` is what acceptance.json holds."""

    device: torch.device
    folder: Path
    end: float = float("inf")  # of time.monotonic()
    smoke: bool = False  # tiny sizes, to try the script itself
    runs: Path = Path("runs/gpu")
    data_dir: Path = Path("data")
    record: dict[str, Any] = field(default_factory=lambda: {"stages": {}})

    def left(self) -> float:
        """Seconds until the call has to be over."""
        return self.end - time.monotonic()

    def stage(self, name: str) -> dict[str, Any]:
        """What is known of a stage: whether it is `done`, and its `cells`."""
        stage: dict[str, Any] = self.record["stages"].setdefault(name, {"done": False, "cells": {}})
        return stage

    def save(self) -> None:
        """Write the record."""
        write_json(self.folder / "acceptance.json", self.record)

    def fill(self, stage: str, cells: Iterable[str], measure: Callable[[str], dict[str, Any]]) -> None:
        """Measure the cells of a stage that are missing; what fails is recorded as an error and left."""
        known = self.stage(stage)["cells"]
        for cell in cells:
            if cell in known:
                continue
            if self.left() <= 0:
                raise OutOfTime
            try:
                known[cell] = measure(cell)
            except Exception as error:
                known[cell] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
            self.save()
            print(f"{stage} {cell}: {brief(known[cell])}", flush=True)
        self.stage(stage)["done"] = True


def brief(cell: dict[str, Any]) -> str:
    """A cell on one line."""
    return ", ".join(f"{key} {number(value)}" for key, value in cell.items())


def number(value: Any) -> str:
    """A value as it is shown: figures in four digits, – for none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
