"""A run that was begun, and what stands in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_run import QUICK

WORDS = ("train", *QUICK, "method=standard", "attack.eps=51/255")


def only(folder: Path) -> Path:
    (found,) = [path for path in (folder / "runs").iterdir() if path.name != "sweeps"]
    return found


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)


def contents(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


# What was said.
