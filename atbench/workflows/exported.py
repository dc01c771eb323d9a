"""Folders that `atbench export` wrote, read back: what comes from them chooses no code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atbench.config.argv import as_typed
from atbench.config.untrusted import refuse_code, refuse_interpolations
from atbench.errors import DataError
from atbench.runs.run_dir import read_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class Exported:
    """An exported network: its file of weights, its `model` node, and the images and classes that it is for."""

    weights: Path
    model: dict[str, Any]
    shape: tuple[int, ...]
    classes: int


def read_export(target: str) -> Exported | None:
    """The network in the folder `target`, or in the folder of that `model.safetensors`; None where it is no export.

    Raises DataError for a damaged folder, ConfigError for code that neither atbench nor the user names.
    """
    folder = Path(target).parent if Path(target).name == WEIGHTS else Path(target)
    if not (folder / CONFIG).is_file():
        return None
    content = read_json(folder / CONFIG)
    try:
        model = {**content["model"], "_target_": str(content["model"]["_target_"])}
        shape, classes = tuple(int(side) for side in content["input"]["shape"]), len(content["classes"])
        if content["normalisation"]["mean"] is None:  # not in its weights
            model |= {key: content["given"][key] for key in ("mean", "std") if key in content["given"]}
    except (KeyError, TypeError, ValueError) as fault:
        why = f"is damaged, or not what `atbench export` writes ({type(fault).__name__}: {fault})"
        raise DataError("export", folder / CONFIG, why, "export the network again") from fault
    refuse_code({"model": model}, ("model",), as_typed())
    refuse_interpolations({"model": model})
    return Exported(folder / WEIGHTS, model, shape, classes)
