"""What a network is given of the data set that it is for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from atbench.config.instantiate import accepted_kwargs, locate
from atbench.data import Source
from atbench.errors import ConfigError
from atbench.models import Network


def model_kwargs(node: DictConfig, source: Source) -> dict[str, Any]:
    """What the target of `model` is given of the data set. What is no Network gets only what it names and the
    configuration does not set: its keywords may mean something else, and be handed on to what does not take them.
    """
    offered = {"shape": source.shape, "classes": len(source.classes), "mean": source.mean, "std": source.std}
    target = locate(str(node["_target_"]), "model._target_")
    given = accepted_kwargs(node, "model", offered)
    if isinstance(target, type) and issubclass(target, Network):
        _check_normalisation({**given, **{str(key): value for key, value in node.items()}}, node, source.shape[0])
        return given
    _check_normalisation(given, node, source.shape[0])
    named = inspect.signature(target).parameters.keys() - node.keys()
    return {name: value for name, value in given.items() if name in named}


def _check_normalisation(settings: Mapping[str, Any], node: DictConfig, channels: int) -> None:
    """Refuse a mean or deviation, of the model's own or of the data set's, that cannot be one of these images."""
    for name in ("mean", "std"):
        key, values = f"model.{name}" if name in node else f"dataset.source.{name}", list(settings.get(name, (1.0,)))
        if len(values) not in (1, channels):
            why = f"has {len(values)} numbers for images of {channels} channel{'s'[: channels - 1]}"
            raise ConfigError(key, values, why, "give one a channel")
        if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
            why = "must be finite" if name == "mean" else "is what pixels are divided by, and must be above 0"
            raise ConfigError(key, values, why, "correct the value")
