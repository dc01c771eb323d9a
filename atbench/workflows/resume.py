"""Going back to a run: the configuration it was started with, and what may differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atbench.config.argv import as_typed
from atbench.config.renamed import renamed_config, renamed_override
from atbench.config.schema import TrainConfig
from atbench.config.untrusted import interpolations, refuse_code, refuse_interpolations
from atbench.config.values import as_written, recorded, resolve
from atbench.errors import ConfigError, DataError
from atbench.reporting.run_folder import lookup
from atbench.runs.run_dir import read_json, refuse_links, refuse_path
from atbench.training import checkpoint

RESTORE = "restore it from a copy, or from `config` in a checkpoint"
#: What every run has that is made of parts.
PARTS = (
    "dataset.source._target_", "dataset.threat", "model._target_", "attack._target_", "method._target_",
    "train.optimizer._target_", "train.schedule._target_",
)  # fmt: skip
#: What may be given anew when a run goes on: nothing of it changes a number that the run computes.
FREE = ("device", "threads", "logger", "runs", "data_dir", "train.time_limit", "train.checkpoint")


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder. Raises DataError where there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        sweep = (folder / "multirun.yaml").is_file()
        fix = f"of a sweep: `atbench train -m resume={folder}`" if sweep else "name a folder under runs/"
        raise DataError("run", folder, "is not a run folder: it has no config.yaml", fix)
    refuse_links(folder)
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        why = f"is damaged ({' '.join(str(error).split())})"
        raise DataError("run", path, why, RESTORE) from error
    if not isinstance(content, dict):
        raise DataError("run", path, "is damaged: it holds no settings", RESTORE)
    return renamed_config(content)


def changed(folder: Path, composed: DictConfig, typed: list[str]) -> DictConfig:
    """The run's configuration with those of the typed overrides that a resumed run may have. Raises ConfigError for the
    others.
    """
    saved, now, said = read_config(folder), resolve(composed), _said(folder)
    refuse_code(saved, ("",), as_typed())
    refuse_interpolations(saved, [word.lstrip("+~").partition("=")[0] for word in typed])
    cfg = OmegaConf.create(_complete(saved, folder / "config.yaml"))
    for key, _ in interpolations(saved):  # said again on the line
        OmegaConf.update(cfg, key, as_written(now, key))
    for name in cfg.eval.checkpoints:
        refuse_path("eval.checkpoints", name)
    for word in typed:
        name, _, value = word.lstrip("+~").partition("=")
        key = name.partition("@")[0]
        if key == "resume" or word in said:
            continue
        new, old = (_plain(OmegaConf.select(each, key)) for each in (now, cfg))
        if _free(key):
            OmegaConf.update(cfg, key, as_written(now, key), merge=False, force_add=True)
        elif key == "experiment" or difference(old, new, key) or difference(new, old, key):
            named = lookup(old, "about.name") or ("another" if isinstance(old, dict) or key == "experiment" else old)
            why = f"the run has {named}; a resumed run keeps its configuration"
            raise ConfigError(key, value or word, why, "leave it out, or start a new run")
    cfg.resume = str(folder)
    return cfg


def difference(saved: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key of the plain configuration `saved` that is otherwise in `now`, and both values, if there is one.
    What a run may have anew does not count, nor what an option says about itself beside its name.
    """
    if key == "resume" or _free(key):
        return None
    if not isinstance(saved, Mapping) or not isinstance(now, Mapping):
        return None if saved == now else (key, saved, now)
    names = ("name",) if key.rpartition(".")[2] == "about" else saved
    inner = ((name, f"{key}.{name}" if key else str(name)) for name in names)
    found = (difference(saved.get(name), now.get(name), path) for name, path in inner)
    return next((each for each in found if each), None)


def refuse_other(saved: Mapping[str, Any], cfg: DictConfig, path: Path) -> None:
    """Raise DataError if the configuration that a checkpoint was `saved` with is not that of its run."""
    if found := difference(renamed_config(saved), recorded(cfg)):
        key, then, now = found
        why = f"{key} was {then} when it was trained, and config.yaml has {now}"
        raise DataError("checkpoint", path, why, "restore config.yaml")


def finished(folder: Path) -> float | None:
    """The selected epoch's PGD accuracy on the held-out part, of a run whose report is written; None of any other."""
    status = read_json(folder / "status.json")
    done = status.get("state") == "done" and status.get("exit_code") == 0
    return float(status.get("score", "nan")) if done else None


def twin(sweep: Path, cfg: DictConfig) -> Path | None:
    """The run in the folder of a sweep that has this configuration: the job that is to be done, done or begun."""
    now = recorded(cfg)
    for path in sorted(sweep.glob("*/config.yaml")):
        saved = read_config(path.parent)
        if not difference(saved, now) and not difference(now, saved):
            return path.parent
    return None


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _said(folder: Path) -> list[str]:
    """The words that the run was started with: repeating them changes nothing."""
    path = folder / "as_typed.yaml"
    try:
        content = yaml.safe_load(path.read_bytes()) if path.is_file() else {}
        words = [*content.get("argv", []), *content.get("overrides", [])]
        return [renamed_override(str(word))[0] for word in words]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DataError("run", path, "is damaged", "restore it from a copy, or remove it") from error


def _complete(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration in `content`, with defaults for what its version did not know. Raises DataError for a value
    of another type, and for one that is not there.
    """
    names = {each.name for each in fields(TrainConfig)}
    try:
        known = OmegaConf.merge(
            OmegaConf.structured(TrainConfig), {key: value for key, value in content.items() if key in names}
        )
        lacking = [*sorted(OmegaConf.missing_keys(known)), *(key for key in PARTS if not lookup(content, key))]
        if lacking:
            raise DataError("run", path, f"is damaged: it lacks {lacking[0]}", RESTORE)
    except OmegaConfBaseException as error:
        raise DataError("run", path, f"is damaged ({str(error).splitlines()[0]})", RESTORE) from error
    return {**content, **{str(key): value for key, value in OmegaConf.to_container(known).items()}}  # type: ignore[union-attr]


def is_external(config: Mapping[str, Any]) -> bool:
    """Whether a folder's configuration is that of a network which no run of ours trained."""
    return "checkpoint" in config


def target_of(target: str, which: list[str]) -> tuple[Path, list[str], dict[str, Any]]:
    """What a path names: a run folder with those checkpoints `which` of it, or one checkpoint; and the configuration
    that they belong to. The folder of a foreign network has the one that its configuration names.
    """
    path = Path(target)
    if path.suffix != ".pt":
        config = read_config(path)
        names = config["eval"]["checkpoints"] if is_external(config) else which
        for name in names:
            refuse_path("eval.checkpoints", name)
        return path, names, config
    saved: dict[str, Any] = checkpoint.read(path, needs=("config", "model", "epoch"))["config"]
    refuse_links(path.parent.parent)
    return path.parent.parent, [path.stem], renamed_config(saved)
