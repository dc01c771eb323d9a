"""What a run says of itself before it starts: on the terminal, and in environment.json."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from atbench import __version__
from atbench.data import Source
from atbench.reporting.wording import both_forms

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "wandb", "rich")


def environment(cfg: DictConfig, source: Source, about: dict[str, Any]) -> dict[str, Any]:
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
        "git": _commit(),
    }


def facts(cfg: DictConfig, about: dict[str, Any], resumed: Path | None) -> list[tuple[str, str]]:
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
