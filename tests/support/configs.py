"""Configurations as `atbench train` and `atbench eval` compose them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from omegaconf import DictConfig

from atbench.config import registry, values
from atbench.config.compose import compose

PAPERS = [name for name in registry.options("experiment", [registry.conf_dir()]) if name.startswith("paper/")]


def composed(*words: str, verb: str = "train") -> DictConfig:
    """What Hydra hands to a run, without the detour over the command line, which composes twice. A copy."""
    return deepcopy(_composed(words, verb))


def resolved(*words: str) -> DictConfig:
    """As a run reads it: fractions are numbers, interpolations are resolved, nothing can change. The same each time."""
    return _resolved(words)


@cache
def _resolved(words: tuple[str, ...]) -> DictConfig:
    return values.resolve(_composed(words, "train"))


@cache
def _composed(words: tuple[str, ...], verb: str) -> DictConfig:
    return compose(verb, words)


def node(target: str, **options: Any) -> dict[str, Any]:
    """A node that builds `target`."""
    return {"_target_": target, "about": {"name": "x"}, **options}
