"""Composition of a configuration from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from atbench.config import registry, schema
from atbench.config.overrides import quoted


def version_base() -> dict[str, str]:
    """The argument with which Hydra 1.3 behaves as 1.4, which has one behaviour and warns of the argument."""
    old = tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4)
    return {"version_base": "1.3"} if old else {}


def compose(verb: str, overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The configuration of `atbench VERB OVERRIDE ...`, with the user's `config_dir` if there is one, unresolved. Works
    inside another Hydra application.
    """
    schema.register()
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(registry.conf_dir()), **version_base()):
            own = [f"hydra.searchpath=[{quoted(f'file://{config_dir}')}]"] if config_dir else []
            return hydra.compose(verb, [*own, *overrides])
    finally:
        state.hydra = outer
