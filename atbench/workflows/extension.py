"""Further epochs for a finished run: `atbench train resume=RUN train.epochs=40`.

From then on every schedule is that of the longer training, at the place where the shorter one ended: a learning rate
that had come down rises again. The run is none of one schedule, and `extended_at` in its status and in the records of
later epochs says after which epochs it was extended.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from atbench.config.renamed import renamed_config
from atbench.config.tree import walk
from atbench.errors import ConfigError
from atbench.runs.run_dir import read_json, set_status, write_text
from atbench.training import checkpoint

KEY = "train.epochs"


def extended_config(config: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """A run's configuration with so many epochs, also in the schedules that count epochs."""
    changed = deepcopy(dict(config))
    before = changed["train"]["epochs"]
    for _, node in walk(changed["train"]):
        if isinstance(node, dict) and node.get("epochs") == before:
            node["epochs"] = epochs
    return changed


def refuse_extension(folder: Path, config: Mapping[str, Any], epochs: int) -> None:
    """Raise ConfigError where the run in `folder` cannot be trained for so many epochs: it is not finished, has had as
    many or ended before its last, or its schedule is no function of the share of training done.
    """
    before, status = config["train"]["epochs"], read_json(folder / "status.json")
    if status.get("state") != "done" or status.get("exit_code") != 0:
        why = f"the run has {before} and is not finished; a resumed run keeps its configuration"
        raise ConfigError(KEY, epochs, why, f"finish it first: `atbench train resume={folder}`")
    if epochs < before:
        raise ConfigError(KEY, epochs, f"the run has trained for {before}", "give more, or start a new run")
    if ended := checkpoint.read(folder / "checkpoints" / "last.pt", needs=("over",))["over"]:
        why = f"training ended at epoch {status.get('epoch')} of {before} ({ended})"
        raise ConfigError(KEY, epochs, why, "start a new run")
    targets = [
        str(node["_target_"]) for _, node in walk(config["train"]) if isinstance(node, dict) and "_target_" in node
    ]
    if any(target.endswith("schedules.InverseTime") for target in targets):
        why = "the schedule's decay is set for the number of all steps"
        raise ConfigError(KEY, epochs, why, "start a new run")


def finished_config(folder: Path, epochs: int) -> dict[str, Any] | None:
    """The configuration in the folder of a run that is to be trained for `epochs`, if it has another number of them."""
    saved = renamed_config(yaml.safe_load((folder / "config.yaml").read_bytes()))
    return saved if saved["train"]["epochs"] != epochs else None


def as_extended(saved: Mapping[str, Any], epochs: int, folder: Path) -> Mapping[str, Any]:
    """The configuration in a checkpoint as an extension of the run to so many epochs makes it, which may be begun."""
    then = saved["train"]["epochs"]
    if then == epochs:
        return saved
    current = finished_config(folder, epochs)
    known = [*extended_at(folder), *([current["train"]["epochs"]] if current else [])]
    return extended_config(saved, epochs) if then in known else saved


def extended_at(folder: Path, epoch: int | None = None) -> list[int]:
    """The epochs after which the run in `folder` was extended; those before `epoch`, if one is given."""
    marks = [int(mark) for mark in read_json(folder / "status.json").get("extended_at", [])]
    return marks if epoch is None else [mark for mark in marks if mark < epoch]


def record_extension(folder: Path, config: Mapping[str, Any], epochs: int) -> None:
    """Mark the run as extended, and write its new configuration. `config`: the one that it was finished with."""
    set_status(folder, extended_at=[*extended_at(folder), config["train"]["epochs"]])
    text = yaml.safe_dump(extended_config(config, epochs), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)
