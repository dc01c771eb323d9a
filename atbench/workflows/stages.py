"""Configurations of the stages that a method is pre-trained in."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atbench.config import registry, validate, values
from atbench.config.argv import as_typed
from atbench.config.compose import compose
from atbench.config.hydra_errors import composition_error
from atbench.config.overrides import parse_words
from atbench.config.untrusted import refuse_code, refuse_interpolations
from atbench.data import Source
from atbench.errors import ConfigError, DataError
from atbench.methods import Stage
from atbench.training.checkpoint import is_checkpoint
from atbench.workflows.exported import read_export
from atbench.workflows.resume import finished_score, is_external, resolve_target

#: Config groups and sections that the overrides of a stage may change.
GROUPS = ("dataset", "model", "attack", "recipe")
SECTIONS = ("dataset", "model", "attack", "train")
#: What a recipe sets of `train` besides the epochs, which are a share of the run's.
OF_RECIPE = ("batch_size", "optimizer", "schedule", "weight_decay_on", "clip_norm", "label_smoothing")


def stage_config(cfg: DictConfig, stage: Stage) -> DictConfig:
    """The configuration of a stage: a finished run's own; else this run's, with the stage's method, seed and epochs,
    without `plus`, and with the stage's overrides.

    Raises ConfigError for overrides that cannot be, DataError for a run that cannot be read or is not finished.
    """
    if stage.checkpoint is not None:
        return finished_network(cfg, stage)[1]
    changed = OmegaConf.create(values.recorded(cfg))
    changed.method, changed.plus = stage.method, {}
    changed.seed = cfg.seed + stage.offset
    changed.train.epochs = max(1, round(stage.epochs * cfg.train.epochs))
    changed.train.groups = {}
    if stage.overrides:
        changed = _overridden(changed, stage.overrides)
        validate.validate_config(changed)
    return changed


def finished_network(cfg: DictConfig, stage: Stage) -> tuple[Path, DictConfig]:
    """The file that `stage.checkpoint` names, and the configuration of its network: a finished run's own; of an export
    and of a file of weights this run's, with that network.
    """
    target = str(stage.checkpoint)
    if stage.overrides:
        if not Path(target).is_file():
            raise DataError("checkpoint", target, "there is no such file of weights", "correct the path")
        return Path(target), _overridden(OmegaConf.create(values.recorded(cfg)), stage.overrides)
    if (exported := read_export(target)) is not None:
        return exported.weights, OmegaConf.create({**values.recorded(cfg), "model": exported.model})
    if Path(target).is_file() and not is_checkpoint(Path(target)):
        why = "is no checkpoint of atbench, and a file of weights does not say for which network it is"
        raise DataError(
            "checkpoint", target, why, "name the network: method.teacher_model=NAME, where it is a teacher's"
        )
    file, saved = find_checkpoint(target, stage.best)
    return file, OmegaConf.create({**saved, "data_dir": cfg.data_dir})


def refuse_misfit(name: str, stage: Stage, source: Source) -> None:
    """Raise DataError for an export that is for other images or another number of classes than the run's."""
    exported = read_export(stage.checkpoint) if stage.checkpoint and not stage.overrides else None
    if exported and (exported.shape, exported.classes) != (source.shape, len(source.classes)):
        ours = f"{len(source.classes)} classes of {source.shape}"
        why = f"is for {exported.classes} classes of {exported.shape}, and {source.name} has {ours}"
        raise DataError(f"stage {name}", stage.checkpoint, why, "use another")


def find_checkpoint(target: str, best: bool) -> tuple[Path, dict[str, Any]]:
    """The file that a run's folder (its `best` or last checkpoint) or a checkpoint's path names, and the run's
    configuration. Raises DataError where there is none, or the run goes on, ConfigError for code of somebody else's.
    """
    folder, (name, *_), saved = resolve_target(target, ["best" if best else "last"])
    if is_external(saved):
        raise DataError("checkpoint", target, "is an evaluation's folder", "name the folder of a run, or a checkpoint")
    refuse_code(saved, ("model", "dataset.source"), as_typed())
    refuse_interpolations({key: saved[key] for key in ("model", "dataset")})
    if Path(target) == folder and finished_score(folder) is None:
        fix = f"finish it: `atbench train resume={folder}`, or name one of its checkpoints"
        raise DataError("checkpoint", target, "is a run that is not finished", fix)
    return folder / "checkpoints" / f"{name}.pt", saved


def _overridden(cfg: DictConfig, words: tuple[str, ...]) -> DictConfig:
    """`cfg` with `words` applied as a command line's: groups first, then single keys. All else stays."""
    folder = parse_words(as_typed()[1:]).config_dir
    folders = [registry.conf_dir(), *([folder] if folder else [])]
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
        for override in parsed:
            _check_override(override)
        groups = {str(each.key_or_group): str(each.input_line) for each in parsed if each.key_or_group in GROUPS}
        changed = _with_groups(cfg, groups, folder) if groups else cfg.copy()
        OmegaConf.set_struct(changed, True)
        for each in parsed:
            if each.key_or_group not in groups:
                OmegaConf.update(changed, each.key_or_group, each.value(), merge=False, force_add=each.is_add())
        resolved = values.recorded(values.resolve(changed))
    except (HydraException, OmegaConfBaseException) as error:
        raise composition_error(error, ["train", *words], partial(registry.options, folders=folders)) from error
    built = {part: resolved[part] for part in {*SECTIONS, *groups}}
    refuse_code(built, SECTIONS, as_typed())  # the words may have come with a run that goes on
    return OmegaConf.create({**values.recorded(cfg), **built})


def _check_override(override: Override) -> None:
    """Refuse what a stage does not take from its run."""
    section, _, rest = override.key_or_group.partition(".")
    if override.key_or_group not in GROUPS and not (section in SECTIONS and rest):
        why = "is nothing that a stage of pre-training may change"
        fix = f"use {', '.join(GROUPS)}, or a key of {', '.join(SECTIONS)}"
        raise ConfigError("stage", override.input_line, why, fix)


def _with_groups(cfg: DictConfig, groups: dict[str, str], folder: Path | None) -> DictConfig:
    """Other options of these groups, composed around what stays of `cfg`, unresolved."""
    composed, kept = OmegaConf.to_container(_composed(tuple(groups.values()), folder)), values.recorded(cfg)
    assert isinstance(composed, dict)
    named = {key: composed["train"][key] for key in OF_RECIPE} if "recipe" in groups else {}
    stays = {part: kept[part] for part in ("dataset", "model", "attack") if part not in groups}
    return OmegaConf.create({**composed, **stays, "train": {**kept["train"], **named}})


@cache
def _composed(words: tuple[str, ...], folder: Path | None) -> DictConfig:
    return compose("train", ["method=standard", *words], folder)
