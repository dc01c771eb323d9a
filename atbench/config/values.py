"""Resolution of a composed configuration into plain values: interpolations followed, fractions as floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atbench.config.env_variables import restore_env_references
from atbench.config.hydra_errors import interpolation_error
from atbench.config.schema import FRACTION, fraction, register
from atbench.config.tree import select
from atbench.errors import ConfigError

# Run-level keys where a/b is a path.
_TEXTS = frozenset({"name", "runs", "data_dir", "resume", "weights", "checkpoint", "device", "target", "verify"})


def resolve(cfg: DictConfig) -> DictConfig:
    """The configuration as plain values, read-only: interpolations followed, fractions floats, unknown keys refused.
    Texts of the environment stay `${oc.env:...}`, which gives their value wherever one is asked for.

    Raises ConfigError for a value that was never given and for an interpolation that leads nowhere.
    """
    register()
    try:
        for key in sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(key, "???", "has to be given", f"write {key}=...")
        values, typed = _tree(cfg, resolve=True), _tree(cfg, resolve=False)
    except OmegaConfBaseException as error:
        raise interpolation_error(error, _tree(cfg, resolve=False)) from error
    numbers = {key: value if key in _TEXTS else _floats(value) for key, value in values.items()}
    result = OmegaConf.create(restore_env_references(numbers, typed, typed))
    OmegaConf.set_struct(result, True)
    OmegaConf.set_readonly(result, True)
    return result


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A resolved configuration as dicts, lists and scalars, fit for JSON, YAML and checkpoints."""
    return _tree(cfg, resolve=True)


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The same for what is written down and sent away: what was read of the environment is not in it."""
    return _tree(cfg, resolve=False)


def as_written(cfg: DictConfig, key: str) -> Any:
    """The value at a key of a resolved configuration, as it is written down."""
    return select(recorded(cfg), key)


def _tree(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    values = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _floats(value: Any) -> Any:
    """`value` with every text that is a fraction replaced by its float, except in what is only told about an option."""
    if isinstance(value, Mapping):
        return {key: inner if key == "about" else _floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return fraction(value) if isinstance(value, str) and FRACTION.fullmatch(value) else value
