"""Checks of configurations that come with files, a run's or a checkpoint's.

They choose no code beside the allow-list and read nothing of this machine; the user repeats on the command line what of
both is the user's own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atbench.config.allow_list import rule_for
from atbench.config.tree import select, walk
from atbench.errors import ConfigError

#: The parts of a configuration that an evaluation builds.
EVALUATED = ("model", "dataset.source", "eval.attacks")
_NAMED = re.compile(r"_target_['\"]?\s*[:=]\s*['\"]?([\w.]+)")


def refuse_code(config: Mapping[str, Any], parts: Sequence[str], typed: Sequence[str]) -> None:
    """Raise ConfigError where one of these parts of a file's configuration names a class that neither the allow-list
    nor the user names: on the line `typed`, or in a YAML file below its `--config-dir`.
    """
    known = _user_targets(typed)
    unlisted = [
        (key, name)
        for part in parts
        for key, name in _unlisted_targets(select(config, part), part)
        if name not in known
    ]
    if not unlisted:
        return
    key, name = unlisted[0]
    line = shlex.join(["atbench", *typed, *(f"{key}={name}" for key, name in unlisted)])
    why = "a file that is read chooses no code beside atbench's own"
    fix = f"if you trust it, name it yourself: `{line}`, with --config-dir DIR where it lies beside one"
    raise ConfigError(key, name, why, fix)


def target_overrides(config: Mapping[str, Any], parts: Sequence[str] = EVALUATED) -> list[str]:
    """The `_target_` overrides that a command needs to build these parts of a configuration again."""
    return [f"{key}={name}" for part in parts for key, name in _unlisted_targets(select(config, part), part)]


def refuse_interpolations(config: Any, overridden: Collection[str] = ()) -> None:
    """Raise ConfigError for a text of a file's configuration that would be looked up, such as `${oc.env:SECRET}`,
    unless its key is among those `overridden` by the user.
    """
    for key, text in interpolations(config):
        if key not in overridden:
            why = "a file that is read does not look up values of this machine"
            raise ConfigError(key, text, why, f"give the value yourself: {key}=...")


def interpolations(config: Any) -> Iterator[tuple[str, str]]:
    """The interpolations in a configuration that should hold plain values: dotted key and text."""
    return ((key, text) for key, text in walk(config, about=False) if isinstance(text, str) and "${" in text)


def only_repeats_targets(node: Any, saved: Any) -> bool:
    """Whether a node of the command line holds nothing but `_target_`s that are equal to the saved ones."""
    if isinstance(node, Mapping) and isinstance(saved, Mapping) and node:
        return all(
            saved.get(key) == inner if key == "_target_" else only_repeats_targets(inner, saved.get(key))
            for key, inner in node.items()
        )
    return False


def _unlisted_targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Key and name of every `_target_` that is not in the allow-list, in a node that lies at `key`."""
    for path, inner in walk(node, key, about=False):
        if isinstance(inner, Mapping) and "_target_" in inner:
            name, rule = inner["_target_"], rule_for(path)
            if rule is None or name not in rule.names:
                yield f"{path}._target_" if path else "_target_", str(name)


def _user_targets(typed: Sequence[str]) -> frozenset[str]:
    texts = list(typed[1:])
    for word, following in zip(typed, [*typed, ""][1:], strict=True):
        option, _, value = word.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = Path(value or following)
            texts += [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml"))]
    return frozenset(name for text in texts for name in _NAMED.findall(text))
