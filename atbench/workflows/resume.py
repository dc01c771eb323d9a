"""Configurations of earlier runs, and what may differ when one is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from atbench.config.argv import as_typed, shell_line
from atbench.config.overrides import parse_words, setting
from atbench.config.renamed import renamed_config, renamed_override
from atbench.config.schema import TrainConfig
from atbench.config.tree import select
from atbench.config.untrusted import EVALUATED, interpolations, refuse_code, refuse_interpolations, target_overrides
from atbench.config.values import as_written, recorded, resolve
from atbench.errors import ConfigError, DataError
from atbench.reporting.console import print_warnings
from atbench.reporting.metrics_log import METRICS
from atbench.runs import sweep
from atbench.runs.run_dir import read_json, refuse_links, refuse_path
from atbench.training import Trainer, World, checkpoint
from atbench.workflows import extension

#: The parts of `last.pt`.
STATE = (
    "averages", "best", "config", "epoch", "kept", "method", "metrics", "model", "optimizers", "over", "seconds",
    "step", "sums", "world",
)  # fmt: skip
RESTORE = "restore it from a copy, or from `config` in a checkpoint"
#: Keys that every run has below the groups.
PARTS = (
    "dataset.source._target_", "dataset.threat", "model._target_", "attack._target_", "method._target_",
    "train.optimizer._target_", "train.schedule._target_",
)  # fmt: skip
#: Keys that may change when a run is resumed: they change no number.
FREE = ("device", "threads", "logger", "runs", "data_dir", "train.time_limit", "train.checkpoint", "train.shard")


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder. Raises DataError if there is none."""
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


def resumed_config(folder: Path, composed: DictConfig, typed: list[str]) -> DictConfig:
    """The run's configuration with the typed overrides that a resumed run may have: what changes no number, and more
    epochs than a finished run has had. Raises ConfigError for others.
    """
    saved, now, original = read_config(folder), resolve(composed), _typed_words(folder)
    complete = _complete(saved, folder / "config.yaml")  # first: what is cut off may end within the name of a class
    refuse_code(saved, ("",), as_typed())
    refuse_interpolations(saved, [word.lstrip("+~").partition("=")[0] for word in typed])
    cfg = OmegaConf.create(complete)
    for key, _ in interpolations(saved):  # given again on the command line
        OmegaConf.update(cfg, key, as_written(now, key))
    for name in cfg.eval.checkpoints:
        refuse_path("eval.checkpoints", name)
    for word in typed:
        name, _, value = word.lstrip("+~").partition("=")
        key = name.partition("@")[0]
        if key == "resume" or word in original:
            continue
        new, old = (_plain(OmegaConf.select(each, key)) for each in (now, cfg))
        if key == extension.KEY and new != old:
            extension.refuse_extension(folder, complete, new)
            cfg = OmegaConf.create(extension.extended_config(recorded(cfg), new))
        elif _free(key):
            OmegaConf.update(cfg, key, as_written(now, key), merge=False, force_add=True)
        elif key == "experiment" or difference(old, new, key) or difference(new, old, key):
            named = select(old, "about.name") or ("another" if isinstance(old, dict) or key == "experiment" else old)
            why = f"the run has {named}; a resumed run keeps its configuration"
            raise ConfigError(key, value or word, why, "leave it out, or start a new run")
    cfg.resume = str(folder)
    return cfg


def resume_line(cfg: DictConfig, folder: Path) -> str:
    """The command that goes on with a run, or with the sweep that it is a job of."""
    if many := sweep.sweep_folder():
        return shell_line("train", "-m", setting("resume", many))
    return shell_line("train", setting("resume", folder), *own_code(cfg, ("",)))


def next_lines(cfg: DictConfig, folder: Path) -> list[str]:
    """What one does next with a finished run: a stronger evaluation, and a comparison."""
    others = [many] if (many := sweep.sweep_folder()) else [folder, "OTHER_RUN"]
    return [shell_line("eval", folder, "eval=auto", *own_code(cfg)), shell_line("report", *others)]


def own_code(cfg: DictConfig, parts: Sequence[str] = EVALUATED) -> list[str]:
    """The words with which a later command names the user's own classes again, in these parts of the configuration."""
    folder = parse_words(as_typed()[1:]).config_dir
    return [*(["--config-dir", str(folder)] if folder else []), *target_overrides(recorded(cfg), parts)]


def difference(saved: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key of the plain configuration `saved` with another value in `now`, and both values; None if there is
    none. Keys in FREE and `about` entries other than the name do not count.
    """
    if key == "resume" or _free(key):
        return None
    if not isinstance(saved, Mapping) or not isinstance(now, Mapping):
        return None if saved == now else (key, saved, now)
    names = ("name",) if key.rpartition(".")[2] == "about" else saved
    inner = ((name, f"{key}.{name}" if key else str(name)) for name in names)
    differences = (difference(saved.get(name), now.get(name), path) for name, path in inner)
    return next((each for each in differences if each), None)


def refuse_different_config(saved: Mapping[str, Any], cfg: DictConfig, path: Path) -> None:
    """Raise DataError if a checkpoint's configuration `saved` is not that of its run, or was not until an extension."""
    before = extension.as_extended(renamed_config(saved), cfg.train.epochs, path.parent.parent)
    if changed := difference(before, recorded(cfg)):
        key, then, now = changed
        why = f"{key} was {then} in training, config.yaml has {now}"
        raise DataError("checkpoint", path, why, "restore config.yaml")


def last_state(cfg: DictConfig, folder: Path, world: World) -> dict[str, Any] | None:
    """The state in last.pt, None if there is none yet. Raises DataError if it is gone or of another run."""
    path = folder / "checkpoints" / "last.pt"
    if not path.exists() and not checkpoint.previous(path).exists():
        if (metrics := folder / METRICS).is_file() and metrics.read_bytes().count(b"\n") > 1:
            raise DataError("checkpoint", path, f"is missing, but {METRICS} has epochs", "restore it from a copy")
        return None
    device = "cpu" if cfg.train.shard else world.device  # it is larger than what one process will hold of it
    state, warning = checkpoint.latest(path, device, STATE)
    refuse_different_config(state["config"], cfg, path)
    if state["best"]["epoch"] >= 0:
        checkpoint.read(path.with_name("best.pt"), needs=("model", "epoch"))
    if warning and world.main:
        print_warnings([warning], Console(stderr=True))
    return state


def load_state(trainer: Trainer, state: dict[str, Any], folder: Path) -> None:
    """Put a trainer where the state of the run in `folder` was. Raises DataError if it does not fit."""
    try:
        trainer.load(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as fault:
        path, why = folder / "checkpoints" / "last.pt", (str(fault).splitlines() or [""])[0]
        raise DataError("checkpoint", path, f"does not fit its run ({why})", "use another checkpoint") from fault


def finished_score(folder: Path) -> float | None:
    """The selected epoch's PGD accuracy on the held-out split of a finished run; None if it is not finished."""
    status = read_json(folder / "status.json")
    done = status.get("state") == "done" and status.get("exit_code") == 0
    return float(status.get("score", "nan")) if done else None


def find_matching_run(sweep: Path, cfg: DictConfig) -> Path | None:
    """The run with this configuration in the folder of a sweep, finished or begun; None if there is none."""
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


def _typed_words(folder: Path) -> list[str]:
    """The command line that the run was started with: its words may be repeated."""
    path = folder / "as_typed.yaml"
    try:
        content = yaml.safe_load(path.read_bytes()) if path.is_file() else {}
        words = [*content.get("argv", []), *content.get("overrides", [])]
        return [renamed_override(str(word))[0] for word in words]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DataError("run", path, "is damaged", "restore it from a copy, or remove it") from error


def _complete(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration in `content`, with defaults for keys of later versions. Raises DataError for a missing value or
    one of another type.
    """
    names = {each.name for each in fields(TrainConfig)}
    try:
        ours = {key: value for key, value in content.items() if key in names}
        known = OmegaConf.merge(OmegaConf.structured(TrainConfig), ours)
        lacking = [*sorted(OmegaConf.missing_keys(known)), *(key for key in PARTS if not select(content, key))]
        if lacking:
            raise DataError("run", path, f"is damaged: it lacks {lacking[0]}", RESTORE)
    except OmegaConfBaseException as error:
        raise DataError("run", path, f"is damaged ({str(error).splitlines()[0]})", RESTORE) from error
    return {**content, **{str(key): value for key, value in OmegaConf.to_container(known).items()}}  # type: ignore[union-attr]


def is_external(config: Mapping[str, Any]) -> bool:
    """Whether a folder's configuration is that of an external network."""
    return "checkpoint" in config


def resolve_target(target: str, names: list[str]) -> tuple[Path, list[str], dict[str, Any]]:
    """Folder, checkpoints and configuration of a path to a run folder (checkpoints `names`) or to one checkpoint. The
    folder of an external network has the one checkpoint that its configuration names.
    """
    path = Path(target)
    if path.suffix != ".pt":
        config = read_config(path)
        names = config["eval"]["checkpoints"] if is_external(config) else names
        for name in names:
            refuse_path("eval.checkpoints", name)
        return path, names, config
    saved: dict[str, Any] = checkpoint.read(path, needs=("config", "model", "epoch"))["config"]
    refuse_links(path.parent.parent)
    return path.parent.parent, [path.stem], renamed_config(saved)
