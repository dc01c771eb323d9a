"""What a run says of itself before it starts: on the terminal, and in environment.json."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from atbench import __version__
from atbench.data import Source
from atbench.errors import AtbenchError, ConfigError, DataError
from atbench.reporting.wording import both_forms

#: What a run that goes on must find as it left it: other images or another network are another run, and another number
#: of processes shares out the batches, and their BatchNorm statistics, in another way.
FIXED = ("seed", "parameters", "splits", "data_sha256", "pool_sha256", "processes")
#: What may have changed: it costs the last bits, and the run says so.
NOTED = ("atbench", "git", "python", "packages", "device", "device_name", "threads")
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "wandb", "rich")


def environment_record(cfg: DictConfig, source: Source, about: dict[str, Any]) -> dict[str, Any]:
    """Versions, device, seeds and checksums: what a reader needs to run the same thing again."""
    return {
        "atbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "device": about["device"],
        "device_name": torch.cuda.get_device_name() if about["device"].startswith("cuda") else platform.processor(),
        "processes": about["world"],
        "threads": torch.get_num_threads(),
        "seed": cfg.seed,
        "parameters": about["parameters"],
        "splits": {key: about[key] for key in ("train", "generated", "validation", "pool") if key in about} or None,
        "data_sha256": source.train.sha256(),
        "pool_sha256": checksum(_pool(cfg)),
        "weights_sha256": checksum(cfg.get("weights")),
        "git": _commit(),
    }


def checksum(path: Path | str | None) -> str | None:
    """SHA-256 of a file, or of the names and sizes of the files of a folder; None for nothing and for what is gone."""
    place = Path(path) if path else None
    if place is None or not place.exists():
        return None
    if place.is_file():
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in place.rglob("*") if file.is_file())
    listed = [(str(file.relative_to(place)), file.stat().st_size) for file in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _pool(cfg: DictConfig) -> Path | None:
    """The file or folder of the further images, as the run finds it."""
    path = OmegaConf.select(cfg, "train.extra_data.path")
    if path is None:
        return None
    return next((place for place in (Path(path), Path(cfg.data_dir) / path) if place.exists()), None)


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any], begun: bool) -> list[str]:
    """Warnings of what has changed around a run since it was started; `before` and `now` are as in environment.json,
    and `begun` is whether there is a checkpoint to go on from.

    Raises DataError for what makes another run of it, ConfigError for another number of processes.
    """
    if not before:
        return ["environment.json is missing: nobody knows whether data and versions are those that the run began with"]
    for key in FIXED:
        if key in before and before[key] != now[key]:
            raise _changed(key, before[key], now[key])
    if "weights_sha256" in before and before["weights_sha256"] != now["weights_sha256"] and not begun:
        raise _changed("weights_sha256", before["weights_sha256"], now["weights_sha256"])
    differ = [
        f"{key} {now.get(key)} (was {before[key]})" for key in NOTED if key in before and before[key] != now.get(key)
    ]
    return [f"not exact: the run goes on under other conditions, {', '.join(differ)}"] if differ else []


def _changed(key: str, before: Any, now: Any) -> AtbenchError:
    if key == "processes":
        fix = f"start {before}: torchrun --nproc-per-node={before} -m atbench train resume=RUN"
        return ConfigError("resume", f"{now} processes", f"the run has {before}", fix)
    what = {"data_sha256": "dataset", "pool_sha256": "train.extra_data.path", "weights_sha256": "weights"}.get(key, key)
    short = [str(value)[:12] if key.endswith("sha256") else str(value) for value in (now, before)]
    why = f"the run began with another: {short[1]}"
    return DataError(what, short[0], why, "restore what it began with, or start a new run")


def run_facts(cfg: DictConfig, about: dict[str, Any], resumed: Path | None) -> list[tuple[str, str]]:
    """What will run, for the terminal."""
    train, attack, method = cfg.train, cfg.attack, cfg.method.about
    channels, height, width = about["shape"]
    splits = f"{about['train']:,} train, {about['validation']:,} held out for selection"
    more = {"generated": "further with labels", "pool": "unlabelled"}
    pool = "".join(f", {about[key]:,} {kind}" for key, kind in more.items() if about[key])
    precision = f"{train.precision['attack']} attack, {train.precision['update']} update"
    members = f"{cfg.model.members} × " if cfg.model.get("members", 1) > 1 else ""
    norms = f" in {attack.norm} and {', '.join(others)}" if (others := _other_norms(cfg)) else ""
    selection = f"PGD-{train.selection.steps}{norms} on the held-out split; best and last are both evaluated"
    length = f"{train.epochs} epochs of {about['steps']} steps, batch {train.batch_size}"
    processes = f", {about['world']} processes" if about["world"] > 1 else ""
    return [
        (
            "data",
            f"{cfg.dataset.about.name}: {splits}{pool}; {about['classes']} classes of {channels}×{height}×{width}",
        ),
        ("model", f"{members}{cfg.model.about.name}, {about['parameters']:,} parameters"),
        (
            "threat",
            f"{attack.norm}, eps {both_forms(attack.eps)}, step {both_forms(attack.step_size)}, {attack.steps} steps",
        ),
        ("method", f"{method.name}: {method.get('formula', '')}  ({method.get('paper', 'your own')})"),
        ("recipe", f"{cfg.recipe.about.name}: {length}{_plus(cfg)}"),
        ("device", f"{about['device']}{processes}, {torch.get_num_threads()} threads, {precision}"),
        ("select", selection),
        ("folder", str(resumed) if resumed else f"{cfg.runs}/…"),
    ]


def _other_norms(cfg: DictConfig) -> list[str]:
    return [norm for norm in cfg.train.selection.norms if norm != cfg.attack.norm]


def _plus(cfg: DictConfig) -> str:
    return f", plus {', '.join(cfg.plus)}" if cfg.plus else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that the program runs from, with a mark if files differ from it; None outside a
    checkout.
    """
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True
    )
    return answer.stdout.strip() or None
