"""The folder of a sweep: Hydra makes it before it checks the jobs, so a refused sweep has to take it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

_made: list[Path] = []  # what the sweep of this process brought into being, topmost first


class SweepFolder(Callback):
    """Hydra's callback (named in the primary configs) that notes which folders the sweep is about to make."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        _made[:] = [path for path in (*reversed(folder.parents), folder) if not path.exists()]


def forget() -> None:
    """Start anew: another sweep of this process is none of our business."""
    _made.clear()


def withdraw() -> None:
    """Remove what a refused sweep left: its folders, as long as they hold nothing but Hydra's record of the sweep."""
    for folder in reversed(_made):
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - {"multirun.yaml"}:
            break
        (folder / "multirun.yaml").unlink(missing_ok=True)
        folder.rmdir()
    forget()


def current() -> Path | None:
    """The folder of the sweep that this job belongs to: its runs lie in it, and it is their W&B group."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)
