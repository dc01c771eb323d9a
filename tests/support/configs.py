"""Configurations as `atbench train` and `atbench eval` compose them."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig

from atbench.config import registry, schema, values

PAPERS = [name for name in registry.options("experiment", [registry.conf_dir()]) if name.startswith("paper/")]


def composed(*words: str, verb: str = "train") -> DictConfig:
    """What Hydra hands to a run, without the detour over the command line, which composes twice."""
    schema.register()
    with hydra.initialize_config_dir(str(registry.conf_dir()), version_base="1.3"):
        return hydra.compose(verb, list(words))


def resolved(*words: str) -> DictConfig:
    return values.resolve(composed(*words))


def node(target: str, **options: Any) -> dict[str, Any]:
    return {"_target_": target, "about": {"name": "x"}, **options}
