"""Going back to a run: the configuration it was started with, and what may differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from atbench.brought import readings, refuse_code, refuse_reading
from atbench.config import as_written
from atbench.errors import ConfigError, DataError
from atbench.folder import refuse_links, refuse_path
from atbench.training import checkpoint

#: What may be given anew when a run goes on: nothing of it changes a number that the run computes.
FREE = ("device", "threads", "logger", "runs", "data_dir", "train.minutes", "train.checkpoint")


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder. Raises DataError where there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise DataError("run", folder, "is not a run folder: it has no config.yaml", "name a folder under runs/")
    refuse_links(folder)
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def changed(folder: Path, composed: DictConfig, typed: list[str]) -> DictConfig:
    """The run's configuration with those of the typed overrides that a resumed run may have. Raises ConfigError for the
    others.
    """
    cfg = _said_again(read_config(folder), composed, typed)
    for name in cfg.eval.checkpoints:
        refuse_path("eval.checkpoints", name)
    for word in typed[1:]:
        key, equals, value = word.lstrip("+~").partition("=")
        if not equals or key == "resume" or word.startswith("-"):
            continue
        new = OmegaConf.select(composed, key)
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            old = OmegaConf.select(cfg, key)
            if old != new:
                why = f"the run has {old}; a resumed run keeps its configuration"
                raise ConfigError(key, value, why, "leave it out, or start a new run")
            continue
        OmegaConf.update(cfg, key, as_written(composed, key), force_add=True)
    if (status := folder / "status.json").is_file() and '"state": "done"' in status.read_text():
        raise ConfigError("resume", folder, "that run is done", f"`atbench eval {folder}` measures it again")
    cfg.resume = str(folder)
    return cfg


def _said_again(saved: dict[str, Any], composed: DictConfig, typed: list[str]) -> DictConfig:
    """The saved configuration of a run, with what the user said again of what they alone may say: which code of theirs
    is run, and what is read of the environment. Raises ConfigError for the rest of either.
    """
    refuse_code(saved, ("",), typed)
    given = {word.lstrip("+~").partition("=")[0] for word in typed[1:]}
    refuse_reading(saved, given)
    cfg = OmegaConf.create(saved)
    for key, _ in readings(saved):
        OmegaConf.update(cfg, key, as_written(composed, key))
    return cfg


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether a folder's configuration is that of a network which no run of ours trained."""
    return "checkpoint" in config


def target_of(target: str, which: list[str]) -> tuple[Path, list[str], dict[str, Any]]:
    """What a path names: a run folder with those checkpoints `which` of it, or one checkpoint; and the configuration
    that they belong to. The folder of a foreign network has the one that its configuration names.
    """
    path = Path(target)
    if path.suffix != ".pt":
        config = read_config(path)
        names = config["eval"]["checkpoints"] if is_foreign(config) else which
        for name in names:
            refuse_path("eval.checkpoints", name)
        return path, names, config
    saved: dict[str, Any] = checkpoint.read(path)["config"]
    refuse_links(path.parent.parent)
    return path.parent.parent, [path.stem], saved
