"""Allow-list for Hydra's own section of a configuration, `hydra`.

Hydra builds callbacks, launchers and loggers from it before any job begins, so it is checked as it is composed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any

import yaml
from hydra._internal import hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atbench.config.tree import walk
from atbench.errors import ConfigError

#: What Hydra and its own plugins put under these keys.
ALLOWED_TARGETS: Mapping[str, Collection[str]] = {
    "launcher": (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    ),
    "sweeper": (
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    ),
    "sweeper.sampler": [
        f"optuna.samplers.{kind}Sampler" for kind in ["TPE", "Random", "CmaEs", "NSGAII", "MOTPE", "Grid"]
    ],
    "callbacks.sweep_folder": ("atbench.runs.sweep.SweepFolder",),
}
BUILT = ("callbacks", "launcher", "sweeper")
LOGGING = ("job_logging", "hydra_logging")
#: Variables that decide which code a process runs, for the jobs of `hydra.job.env_set`.
_CODE_VARIABLES = ("ATBENCH_", "PYTHON", "LD_")


class CheckedConfigLoader(ConfigLoaderImpl):
    """Hydra's composition, followed by `check_hydra_section`. A launcher hands it to its workers."""

    def load_configuration(self, *args: Any, **options: Any) -> DictConfig:
        # The preset of Optuna's plugin minimises: conf/hydra/sweeper/optuna.yaml stands in its place.
        ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)
        cfg = super().load_configuration(*args, **options)
        check_hydra_section(cfg)
        return cfg


def install_loader() -> None:
    """Have Hydra's applications of this process compose with `CheckedConfigLoader`."""
    application.ConfigLoaderImpl = CheckedConfigLoader  # type: ignore[misc]  # Hydra has no setting for it


def check_hydra_section(cfg: DictConfig) -> None:
    """Raise ConfigError where `hydra` names a class, callback or logger that is neither atbench's nor a preset."""
    node: Any = OmegaConf.to_container(cfg, resolve=False)
    node = node["hydra"] if isinstance(node, Mapping) and "hydra" in node else {}
    for path, inner in walk(node):
        named = isinstance(inner, Mapping) and "_target_" in inner
        if named and str(inner["_target_"]) not in ALLOWED_TARGETS.get(path, ()):
            raise _error(
                f"{path}._target_", inner["_target_"], "Hydra builds none but its presets here", "leave it out"
            )
        if isinstance(inner, str) and "${" in inner and path.partition(".")[0] in BUILT:
            _refuse_node_reference(cfg, path)
    sweeper = str((node.get("sweeper") or {}).get("_target_"))
    if "optuna" in sweeper and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        fix = "install the extra: pip install 'atbench[optuna]'"
        raise ConfigError("hydra/sweeper", "optuna", "needs the package hydra-optuna-sweeper", fix)
    for key, callback in (node.get("callbacks") or {}).items():
        if f"callbacks.{key}" not in ALLOWED_TARGETS or not callback:
            raise _error(f"callbacks.{key}", callback, "a run has no callbacks but the program's own", "leave it out")
    for key in LOGGING:
        if node.get(key) not in _presets(key):
            fix = f"choose a preset: hydra/{key}=none, disabled or default"
            raise _error(key, "changed", "a logger's configuration names classes", fix)
    for name in (node.get("job") or {}).get("env_set") or {}:
        if str(name).startswith(_CODE_VARIABLES):
            raise _error("job.env_set", name, "decides which code is run", "set it in the shell")


def _refuse_node_reference(cfg: DictConfig, path: str) -> None:
    """Refuse a reference to a node: what it resolves to would be built unchecked."""
    try:
        value = OmegaConf.select(cfg, f"hydra.{path}", throw_on_missing=True)
    except OmegaConfBaseException:
        value = cfg
    if isinstance(value, (Container, Mapping, list)):
        raise _error(path, "${...}", "refers to no plain value", "write it out")


def _error(key: str, value: object, why: str, fix: str) -> ConfigError:
    return ConfigError(f"hydra.{key}", value, why, fix)


def _presets(group: str) -> list[Any]:
    """The options of one of Hydra's own groups."""
    folder = files("hydra.conf").joinpath("hydra", group)
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".yaml")]
    return [yaml.safe_load(text) for text in texts]
