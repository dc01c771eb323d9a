"""A wandb that records what it is given, in place of the real one."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from atbench.reporting import wandb_logger

WANDB = {"about": {"name": "wandb"}, "project": "test", "entity": None, "mode": None, "tags": []}


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "val": {"clean": 0.9, "pgd": 0.5, "n": 150}, **more}


class Run:
    """Stands for a wandb run; whatever is called in `fails` raises."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.fails, self.logged, self.summary = fails, [], {}
        self.finished: list[int] = []
        self.metrics: dict[str, dict[str, Any]] = {}
        self.artifacts: list[Any] = []
        self.id = "theirs"

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics[name] = options

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.artifacts.append((artifact.files, aliases))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if "log" in self.fails:
            raise ConnectionResetError("service died\nat line 3")
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)


class Artifact:
    """Stands for wandb's, of one file."""

    def __init__(self, name: str, type: str) -> None:
        self.name, self.files = name, list[str]()

    def add_file(self, path: str) -> None:
        self.files.append(Path(path).name)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, run: Run, **changes: Any) -> dict[str, Any]:
    """A `wandb` in place of the real one; returns what `init` was given."""
    given: dict[str, Any] = {}

    def init(**keywords: Any) -> Run:
        given.update(keywords)
        if keywords["mode"] in changes.get("fails", ()):
            raise RuntimeError("no way")
        return run

    def login(prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify, "a prompt, or a wait for the network"
        return bool(changes.get("logged_in", False))

    module = types.SimpleNamespace(
        init=init,
        login=login,
        setup=lambda settings=None: types.SimpleNamespace(
            settings=types.SimpleNamespace(base_url="http://localhost:1")
        ),
        teardown=lambda: None,
        Table=lambda **keywords: keywords,
        Settings=lambda **keywords: keywords,
        Artifact=Artifact,
        plot=types.SimpleNamespace(line_series=lambda **keywords: keywords),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(
        wandb_logger.socket, "create_connection", lambda *_, **__: types.SimpleNamespace(close=lambda: None)
    )
    return given
