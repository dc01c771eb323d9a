"""Environment of a run (environment.json) and the facts printed before it starts."""

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
from atbench.data.loader import floor_share
from atbench.errors import AtbenchError, ConfigError, DataError
from atbench.reporting.wording import both_forms

#: What must not change when a run is resumed; another number of processes would change the BatchNorm statistics.
FIXED = ("seed", "parameters", "splits", "data_sha256", "pool_sha256", "processes")
#: What may change with a warning: it costs bit-exactness.
NOTED = ("atbench", "git", "python", "packages", "device", "device_name", "channels_last", "threads")
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "wandb", "rich")


def environment_record(cfg: DictConfig, source: Source, about: dict[str, Any]) -> dict[str, Any]:
    """The content of environment.json: versions, device, seeds and checksums."""
    return {
        "atbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: number for name in PACKAGES if (number := _version(name))},
        "platform": platform.platform(),
        "device": about["device"],
        "device_name": torch.cuda.get_device_name() if about["device"].startswith("cuda") else processor_name(),
        "channels_last": about.get("channels_last"),
        "processes": about["world"],
        "threads": torch.get_num_threads(),
        "seed": cfg.seed,
        "parameters": about["parameters"],
        "forward_cost": about.get("forward_cost"),
        "splits": {key: about[key] for key in ("train", "generated", "validation", "pool") if key in about} or None,
        "data_sha256": source.train.sha256(),
        "pool_sha256": checksum(_pool(cfg)),
        "weights_sha256": checksum(cfg.get("weights")),
        "git": _commit(),
    }


def checksum(path: Path | str | None) -> str | None:
    """SHA-256 of a file, or of the names and sizes of the files of a folder; None if there is none."""
    source = Path(path) if path else None
    if source is None or not source.exists():
        return None
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in source.rglob("*") if file.is_file())
    listed = [(str(file.relative_to(source)), file.stat().st_size) for file in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _pool(cfg: DictConfig) -> Path | None:
    path = OmegaConf.select(cfg, "train.extra_data.path")
    if path is None:
        return None
    return next((found for found in (Path(path), Path(cfg.data_dir) / path) if found.exists()), None)


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any], begun: bool) -> list[str]:
    """Warnings of what has changed since a run was started; `before` and `now` are as in environment.json, and `begun`
    is whether there is a checkpoint.

    Raises DataError for other data, weights or splits, ConfigError for another number of processes.
    """
    if not before:
        return ["environment.json is missing: data and versions cannot be compared with those at the start of the run"]
    for key in FIXED:
        if key in before and before[key] != now[key]:
            raise _changed(key, before[key], now[key])
    if "weights_sha256" in before and before["weights_sha256"] != now["weights_sha256"] and not begun:
        raise _changed("weights_sha256", before["weights_sha256"], now["weights_sha256"])
    changed = [key for key in NOTED if key in before and before[key] != now.get(key)]
    changes = [f"{key} {now.get(key)} (was {before[key]})" for key in changed]
    return [f"not bit-exact: the run is resumed with {', '.join(changes)}"] if changes else []


def _changed(key: str, before: Any, now: Any) -> AtbenchError:
    if key == "processes":
        fix = f"start {before}: torchrun --nproc-per-node={before} -m atbench train resume=RUN"
        return ConfigError("resume", f"{now} processes", f"the run has {before}", fix)
    what = {"data_sha256": "dataset", "pool_sha256": "train.extra_data.path", "weights_sha256": "weights"}.get(key, key)
    short = [str(value)[:12] if key.endswith("sha256") else str(value) for value in (now, before)]
    return DataError(what, short[0], f"the run was started with {short[1]}", f"restore {what}, or start a new run")


def run_facts(cfg: DictConfig, about: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """(name, value) lines about the run for the terminal."""
    train, attack, method = cfg.train, cfg.attack, cfg.method.about
    images = f"{about['classes']} classes of {'×'.join(map(str, about['shape']))}"
    bound = "" if attack.get("project", True) else " (no bound of the search)"
    steps = f"step {both_forms(attack.step_size)}, {attack.steps} steps"
    splits = f"{about['train']:,} train, {about['validation']:,} held out for selection"
    kinds = {"generated": "extra with labels", "pool": "unlabelled"}
    extra = "".join(f", {about[key]:,} {kind}" for key, kind in kinds.items() if about[key])
    precision = f"{train.precision['attack']} attack, {train.precision['update']} update"
    precision += " (fp32 in TF32)" if train.precision.tf32 and about["device"].startswith("cuda") else ""
    members = f"{cfg.model.members} × " if cfg.model.get("members", 1) > 1 else ""
    others = [norm for norm in train.selection.norms if norm != attack.norm]
    norms = f" in {attack.norm} and {', '.join(others)}" if others else ""
    both = ", average and live network" if train.selection.networks == "both" else ""
    selection = f"PGD-{train.selection.steps}{norms} on the held-out split{both}; best and last are both evaluated"
    length = f"{train.epochs} epochs of {about['steps']} steps, batch {train.batch_size}"
    if about["pool"]:
        unlabelled = floor_share(train.extra_data.fraction, train.batch_size)
        length += f" ({train.batch_size - unlabelled} labelled, {unlabelled} unlabelled)"
    plus = f", plus {', '.join(cfg.plus)}" if cfg.plus else ""
    processes = f", {about['world']} processes" if about["world"] > 1 else ""
    return [
        ("data", f"{cfg.dataset.about.name}: {splits}{extra}; {images}"),
        ("model", f"{members}{cfg.model.about.name}, {about['parameters']:,} parameters"),
        ("threat", f"{attack.norm}, eps {both_forms(attack.eps)}{bound}, {steps}"),
        ("method", f"{method.name}: {method.get('formula', '')}  ({method.get('paper', 'your own')})"),
        ("recipe", f"{cfg.recipe.about.name}: {length}{plus}"),
        ("device", f"{about['device']}{processes}, {torch.get_num_threads()} threads, {precision}"),
        ("select", selection),
        ("folder", str(folder)),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The CPU's name, or that of its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the checkout that the program runs from, with `-dirty` where atbench/ or conf/ differ from it; None
    outside a checkout.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "describe", "--always", "--abbrev=12").stdout.strip()
    changed = commit and _git(checkout, "diff", "--quiet", "HEAD", "--", "atbench", "conf").returncode
    return f"{commit}-dirty" if changed else commit or None


def _git(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True)
