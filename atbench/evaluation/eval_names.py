"""Evaluations of one run or network have names: a short or another one does not take the place of the first.

The first stands in `evaluation/` itself, each other one in a folder of its name beneath. The same evaluation again
takes its own place, and what was there goes to `earlier/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from atbench.errors import ConfigError
from atbench.runs.run_dir import EVALUATION, complete_records, record_folders

#: Keys of `eval` that change no accuracy of the network; `members` adds figures, and records of 0.1.0 lack the key.
_INCIDENTAL = frozenset({"about", "name", "batch_size", "checkpoints", "examples", "members"})


def record_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's numbers depend on besides weights and data: kept beside its records, for `verify`. Of the
    attack of training that is the threat, and nothing of augmentation.
    """
    dataset = {key: node for key, node in config["dataset"].items() if key != "augment"}
    threat = {key: config["attack"][key] for key in ("norm", "eps")}
    return {**{key: config[key] for key in ("seed", "model", "eval")}, "dataset": dataset, "attack": threat}


def evaluation_name(chosen: Mapping[str, Any], n: int, of: int) -> str:
    """`eval.name`, else that of the preset: `auto`, or `auto-n40` where only 40 of the split's images are attacked."""
    if chosen.get("name") is not None:
        return str(chosen["name"])
    stem = str((chosen.get("about") or {}).get("name") or "evaluation")
    return stem if n == of else f"{stem}-n{n}"


def record_dir(folder: Path, config: Mapping[str, Any], name: str) -> Path:
    """Where the records of this evaluation go: where the same evaluation stands, else to `evaluation/` if nothing does,
    else to a folder of its name.
    """
    top, own = folder / EVALUATION, _essence(record_settings(config))
    for where in record_folders(folder):
        if any(_essence(_read(path)) == own for path in where.glob("*.yaml")):
            return where
    if not any(complete_records(top)):
        return top
    for number in range(1, 1000):
        where = top / (name if number == 1 else f"{name}-{number}")
        if not any(complete_records(where)):
            return where
    raise ConfigError("eval.name", name, "a thousand evaluations are called so", "give another name")


def _read(path: Path) -> dict[str, Any]:
    """The settings beside a record; none where they cannot be read."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError):
        return {}
    return known if isinstance(known, dict) else {}


def _essence(config: Mapping[str, Any]) -> Any:
    """Without what is only told about options, and without what changes no number."""
    chosen = {k: v for k, v in (config.get("eval") or {}).items() if k not in _INCIDENTAL}
    if not chosen.get("unforeseen"):  # of records that do not know the key
        chosen = {k: v for k, v in chosen.items() if not k.startswith("unforeseen")}
    return _bare({**config, "eval": chosen})


def _bare(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _bare(value) for key, value in node.items() if key != "about"}
    return [_bare(each) for each in node] if isinstance(node, list) else node
