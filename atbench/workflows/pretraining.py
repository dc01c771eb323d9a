"""Stages of pre-training in a run's folder: which are trained, and which networks are read from finished runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from atbench.config import values
from atbench.data import Source
from atbench.errors import ConfigError, DataError
from atbench.methods import Method, Stage
from atbench.models import weight_files
from atbench.runs.run_dir import read_json, refuse_path, set_status, write_text
from atbench.training import World, checkpoint
from atbench.workflows import factory
from atbench.workflows.environment import checksum
from atbench.workflows.resume import read_config
from atbench.workflows.stages import finished_network, refuse_misfit, stage_config

STAGES = "stages"


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its configuration, its data set and its folder below the run's, which is named by a hash of what the
    network depends on; of a finished network also its file and the SHA-256 of that.
    """

    stage: Stage
    cfg: DictConfig
    source: Source
    folder: Path
    checkpoint: Path | None = None
    sha256: str | None = None


def plan_stages(cfg: DictConfig, stages: Mapping[str, Stage], source: Source, world: World) -> dict[str, PlannedStage]:
    """The stages of a run, none of them trained yet. Raises ConfigError and DataError for what cannot be: overrides, a
    checkpoint, images of another shape than the run's.
    """
    return {name: _planned(cfg, name, stage, source, world) for name, stage in stages.items()}


def _planned(cfg: DictConfig, name: str, stage: Stage, source: Source, world: World) -> PlannedStage:
    refuse_path("stage", name)
    own = stage_config(cfg, stage)
    data = factory.stage_source(cfg, own, source, world)
    if data.shape != source.shape:
        why = f"its images are {data.shape}, and those of {source.name} {source.shape}"
        raise ConfigError(f"stage {name}", data.name, why, "use another data set")
    if stage.checkpoint is None:
        return PlannedStage(stage, own, data, Path(STAGES) / f"{name}-{_digest(own)}")
    refuse_misfit(name, stage, source)
    path = finished_network(cfg, stage)[0]
    sha256 = str(checksum(path))
    return PlannedStage(stage, own, data, Path(STAGES) / f"{name}-{sha256[:8]}", path, sha256)


def _digest(cfg: DictConfig) -> str:
    resolved = values.plain(cfg)
    trained = {key: resolved[key] for key in ("seed", "dataset", "model", "attack", "method", "train")}
    return hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]


def check(planned: Mapping[str, PlannedStage], begun: Path | None) -> None:
    """Raise DataError for a finished network whose weights do not fit it, or, where the run in the folder `begun` goes
    on, for one that is another than at its start.
    """
    for name, each in planned.items():
        if each.checkpoint is None:
            continue
        read_network(each, torch.device("cpu"))
        others = (begun / STAGES).glob(f"{name}-{'?' * 8}") if begun else ()
        for folder in others:
            before = read_json(folder / "status.json").get("sha256")
            if before != each.sha256:
                why = f"is another checkpoint than this run began with: SHA-256 {each.sha256}, not {before}"
                raise DataError(f"stage {name}", each.checkpoint, why, "restore it, or start a new run")
            if OmegaConf.create(read_config(folder)["model"]) != each.cfg.model:
                why = "builds another network than this run began with"
                raise DataError(f"stage {name}", each.checkpoint, why, "restore it, or start a new run")


def load_untrained(cfg: DictConfig, method: Method, source: Source, device: torch.device) -> None:
    """Hand a method untrained networks for those that it wants trained first: what is measured does not depend on
    their weights.
    """
    stages = {}
    for number, (name, stage) in enumerate(method.pretraining().items()):
        own = OmegaConf.create({**values.plain(stage_config(cfg, stage)), "seed": 100 + number})
        stages[name] = stage.handed_over(factory.make_model(own, source).to(device))
    method.load_pretrained(stages)


def record_checkpoints(planned: Mapping[str, PlannedStage], run: Path) -> None:
    """Give each stage that is a finished network a folder in `run`, with its configuration and a status that says which
    file it was.
    """
    for each in planned.values():
        if each.checkpoint is not None and not (folder := run / each.folder).exists():
            write_text(folder / "config.yaml", OmegaConf.to_yaml(each.cfg))
            said = f"{each.checkpoint}, SHA-256 {each.sha256}"
            set_status(folder, state="done", exit_code=0, message=said, sha256=each.sha256)


def read_network(planned: PlannedStage, device: torch.device) -> nn.Module:
    """A finished network: of a run, of an export, or in a file of weights. Raises DataError for weights that do not
    fit.
    """
    assert planned.checkpoint is not None
    network, file = factory.make_model(planned.cfg, planned.source), planned.checkpoint
    of_run = not planned.stage.overrides and file.suffix != weight_files.SAFETENSORS
    try:
        state = checkpoint.read(file, needs=("model",))["model"] if of_run else weight_files.read_weights(file)
        weight_files.load_weights(network, state)
    except DataError as misfit:
        raise DataError("checkpoint", file, misfit.why, "use another checkpoint") from misfit
    return network.to(device)
