"""Composition of a configuration from Python."""

from __future__ import annotations

from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from atbench.config import registry, schema


def version_base() -> dict[str, str]:
    """The argument with which Hydra 1.3 behaves as 1.4, which has one behaviour and warns of the argument."""
    old = tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4)
    return {"version_base": "1.3"} if old else {}


def compose(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of `atbench VERB OVERRIDE ...`, unresolved. Works inside another Hydra application."""
    schema.register()
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(registry.conf_dir()), **version_base()):
            return hydra.compose(verb, list(overrides))
    finally:
        state.hydra = outer
