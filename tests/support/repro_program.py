"""The program that scripts/repro.py starts, replaced by one that writes records instead of training."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from atbench.runs.run_dir import write_text
from scripts import repro
from tests.support.outcomes import STANDARD, Made, write

ENVIRONMENT = {"atbench": "0.1.0", "git": "abc1234", "torch": "2.15.0", "python": "3.12.1", "data_sha256": "d" * 64}
ENVIRONMENT |= {"device": "cpu", "device_name": "A CPU", "threads": 1}
CONFIG = {
    "method": {"about": {"name": "trades"}}, "model": {"about": {"name": "strided"}}, "train": {"epochs": 12},
    "dataset": {"about": {"name": "mnist14"}, "train": {"epochs": 15}},
}  # fmt: skip


class Program:
    """Stands in for `atbench`: notes its words and leaves the files of a run. fails: how often a word's commands fail;
    cut: whether a failed training leaves a checkpoint. act: called at each command."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails: Counter[str] = Counter()
        self.cut, self.act = False, lambda: None

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        words = command[3:]
        self.calls.append(words)
        self.act()
        key, _, path = words[1].rpartition("=")
        run = Path(path) / "run" if key == "runs" else Path(path)
        for word in [word for word in (words[0], *words) if self.fails[word] > 0][:1]:
            self.fails[word] -= 1
            if self.cut:
                (run / "checkpoints").mkdir(parents=True, exist_ok=True)
                (run / "checkpoints" / "last.pt").touch()
            return subprocess.CompletedProcess(command, 5, "", "the disk is full")
        if words[0] == "train":
            asked = [word[18:-1] for word in words if word.startswith("eval.checkpoints=")]
            for name in asked or ["best", "last"]:
                write(run / "evaluation", name, 2, Made({"best": 0.7, "last": 0.6}[name], steps=(1, 20)))
            write_text(run / "config.yaml", yaml.safe_dump(CONFIG))
            write_text(run / "environment.json", json.dumps(ENVIRONMENT))
            write_text(run / "status.json", json.dumps({"state": "done", "train_seconds": 45.2}))
        else:
            name = next(word for word in words if word.startswith("eval.checkpoints="))[18:-1]
            made = Made(0.6, steps=(20,), attacks=STANDARD, sequential=True)
            folder = next(word for word in words if word.startswith("eval.name="))[10:]
            write(run / "evaluation" / folder, name, 2, made)
        return subprocess.CompletedProcess(command, 0, "", "")

    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


def make(folder: Path, what: str, *words: str) -> int:
    paths = ["--runs", str(folder / "runs"), "--results", str(folder / "results"), "--data-dir", "images"]
    return repro.main([what, *paths, "--jobs", "2", *words])
