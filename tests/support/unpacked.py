"""Run folders of somebody else's."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from atbench.config import values
from atbench.config.compose import compose
from atbench.training import checkpoint


def saved(**parts: Any) -> dict[str, Any]:
    """The configuration of a run, with these parts of it another's."""
    config = deepcopy(_standard())
    for key, node in parts.items():
        *groups, name = key.split("__")
        inner = config
        for group in groups:
            inner = inner[group]
        inner[name] = node
    return config


@cache
def _standard() -> dict[str, Any]:
    return values.recorded(values.resolve(compose("train", ["method=standard"])))


def put(run: Path, **parts: Any) -> None:
    """A run folder with a checkpoint, both of this configuration."""
    checkpoint.save(run / "checkpoints" / "best.pt", {"config": saved(**parts), "model": {}, "epoch": 1})
    (run / "config.yaml").write_text(yaml.safe_dump(saved(**parts)))
