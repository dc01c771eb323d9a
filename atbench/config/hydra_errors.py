"""Hydra's and OmegaConf's exceptions as one-line errors. Hydra is imported only when needed."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from atbench.config.near_keys import near_keys, suggestion
from atbench.config.overrides import UnknownOption
from atbench.config.renamed import renamed_override
from atbench.errors import AtbenchError, ConfigError, hint, nearest

Choices = Callable[[str], Sequence[str]]  # a config group ("" for the primary configs) -> the names of its options

_AMBIGUOUS = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*?)'")
_NO_GROUP = re.compile(r"Could not override '([^']+)'")
_NO_PAPER = re.compile(r"You must specify 'experiment@_global_'")  # conf/experiment/none.yaml
# Where a line may add keys that its own configuration lacks: arguments of what is built, checked by its signature.
_ADDED_TO = ("attack", "method", "model", "dataset", "plus", "logger", "recipe", "hydra", "experiment")
_NO_KEY = re.compile(r"Could not delete from config\. '([^']+)' does not exist")


def is_composition_error(error: Exception) -> bool:
    """Whether an error from before the first job is about the line and the configs, and no fault of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):
        return True
    # A few refusals of Hydra are plain ValueErrors (`method=3`): known by where they were raised.
    last = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return isinstance(error, ValueError) and str(last.f_globals.get("__name__")).startswith("hydra.")


def composition_error(error: Exception, typed: Sequence[str], choices: Choices) -> AtbenchError:
    """What Hydra or OmegaConf said of `typed`, in one line with the key, the value, the reason and the way out.

    Call it for errors of composition only, that is before any job has started: the same exceptions raised inside a job
    are faults of the program.
    """
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
    from yaml import MarkedYAMLError

    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(str(mark.name), f"line {mark.line + 1}", f"is no YAML: {error.problem}", "correct the file")
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        what = f"no such {group}" if group else "no such primary config"
        return ConfigError(group or "--config-name", option, what, hint(option, choices(group)))
    if isinstance(error, OverrideParseException):
        return _not_an_override(error.override, choices)
    cause = _cause(error, OmegaConfBaseException)
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_key(cause, typed, choices)
    if cause is not None:
        key = str(getattr(cause, "full_key", None) or "configuration")
        return ConfigError(key, _value_of(key, typed), _first_line(cause), f"see `{_program(typed)} --cfg job`")
    return _other(error, typed, choices)


def interpolation_error(error: Exception, tree: Mapping[str, object]) -> ConfigError:
    """A `${...}` that leads nowhere, and the keys that exist where it stopped. `tree` is the config unresolved."""
    key = str(getattr(error, "full_key", None) or "configuration")
    match = re.search(r"Interpolation key '([^']+)' not found", str(error))
    if match is None:
        return ConfigError(key, "${...}", _first_line(error), "correct the interpolation")
    reference = match.group(1)
    node: object = tree
    for part in reference.split("."):
        if not isinstance(node, Mapping) or part not in node:
            break
        node = node[part]
    known = [str(name) for name in node] if isinstance(node, Mapping) else []
    return ConfigError(key, f"${{{reference}}}", f"the configuration has no '{reference}'", hint(part, known))


def _not_an_override(text: str, choices: Choices) -> ConfigError:
    """Hydra could not parse one override: most often a bare name, whose group we may know."""
    key, equals, value = text.partition("=")
    if equals:
        return ConfigError(key, value, "cannot be parsed", f"quote special characters: '{key}=\"...\"'")
    for group in ("method", "dataset", "model", "attack", "recipe", "plus", "eval", "logger", "experiment"):
        if text in choices(group):
            return ConfigError("override", text, "a setting is written key=value", f"did you mean {group}={text}?")
    return ConfigError("override", text, "a setting is written key=value", "for example method=trades seed=1")


def _unknown_key(cause: Exception, typed: Sequence[str], choices: Choices) -> ConfigError:
    from omegaconf import OmegaConf

    key = str(getattr(cause, "full_key", None) or getattr(cause, "key", ""))
    key = next((name for name, _ in map(_split, typed) if name.startswith(f"{key}.")), key)  # trian.epochs, not trian
    node: Any = getattr(cause, "parent_node", None)
    path = str(getattr(cause, "full_key", None) or key)
    parent, _, leaf = path.rpartition(".")
    why = f"{parent or 'the configuration'} has no '{leaf}'"
    renamed, _ = renamed_override(key)
    if renamed != key:
        return ConfigError(key, _value_of(key, typed), why, f"the key of version 0.1.0 is now {renamed}")
    known = [str(name) for name in node] if isinstance(node, Mapping) else []
    if not parent:
        known = [name for name in (*known, *choices("/")) if name != "hydra"]
    tree: Any = OmegaConf.to_container(node._get_root()) if OmegaConf.is_config(node) else {}
    value, keys = _value_of(key, typed), near_keys(tree, key)
    # A slip of the pen beside its place is nearer than one elsewhere; the very name elsewhere is nearer than both.
    if not keys or (keys[0].rpartition(".")[2] != key.rpartition(".")[2] and nearest(leaf, known)):
        return ConfigError(key, value, why, hint(leaf, known))
    return ConfigError(key, value, why, suggestion(keys, value))


def option_error(unknown: UnknownOption, verb: str, words: Sequence[str]) -> ConfigError:
    """`--epochs 3`: an option that is a key of the configuration of the line; else what was said of it."""
    name, value = unknown.option.lstrip("-"), unknown.following
    keys = near_keys(_composed(verb, words), name)
    if not keys:
        return unknown
    text = unknown.option if value is None else f"{unknown.option} {value}"
    return ConfigError("option", text, "a setting is written key=value", suggestion(keys, value))


def _composed(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a line that cannot be run, as far as it says one: a sweep, say, is left out."""
    from omegaconf import OmegaConf

    from atbench.config.compose import compose

    for overrides in ([word for word in words if "=" in word and not word.startswith("-")], []):
        with suppress(Exception):
            return OmegaConf.to_container(compose(verb, overrides))  # type: ignore[return-value]
    return {}


def added_key_error(words: Sequence[str], tree: Mapping[str, Any]) -> ConfigError | None:
    """`+lr=0.1`, which Hydra adds beside everything that is read: the first such word whose name is that of a key
    elsewhere. None where there is none.
    """
    for name, value in (_split(word) for word in words if re.match(r"\+[^+]", word)):
        keys = [key for key in near_keys(tree, name) if key != name]
        if keys and name.partition(".")[0] not in _ADDED_TO and "@" not in name and "/" not in name:
            return ConfigError(f"+{name}", value, "a key of this name is read nowhere", suggestion(keys, value))
    return None


def _other(error: Exception, typed: Sequence[str], choices: Choices) -> ConfigError:
    """Compositions that Hydra refuses with words alone."""
    text = str(error)
    if match := _AMBIGUOUS.search(text):
        fix = "add -m to sweep over them, or write [a,b] for a list"
        return ConfigError(match[1], match[2], "several values for one run", fix)
    if match := _NO_GROUP.search(text) or _NO_KEY.search(text):
        key, why, groups = match[1], "the configuration has no such group or key", choices("/")
        if key in groups:
            why = "nothing that was chosen takes this group"
            fix = "leave it out, or choose what does (base: method=he; tier: experiment=table1/ROW, or no experiment)"
        else:
            fix = hint(key, groups)
        return ConfigError(key, _value_of(key, typed), why, fix)
    if _NO_PAPER.search(text):
        fix = "name it, experiment=table1/ROW, or leave out the tier: experiment=paper/METHOD"
        return ConfigError("tier", "paper", "it is the setting that a row of table 1 names", fix)
    return ConfigError("command line", " ".join(typed), _first_line(error), f"see `{_program(typed)} --help`")


def _cause(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__  # Hydra wraps what a file of the user's raised without `from`
    return error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _value_of(key: str, typed: Sequence[str]) -> str:
    """What the user gave `key`; the last one wins, as in Hydra."""
    values = [value for name, value in map(_split, typed) if name == key and value is not None]
    return values[-1] if values else "as configured"


def _split(word: str) -> tuple[str, str | None]:
    """Key and value of an override; no value in a word without `=`."""
    name, equals, value = word.lstrip("+~").partition("=")
    return name, value if equals else None


def _program(typed: Sequence[str]) -> str:
    return f"atbench {typed[0]}" if typed else "atbench"
