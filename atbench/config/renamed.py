"""Renamed classes, config keys and record fields of version 0.1.0, whose run folders and command lines still work.

To be removed with the version after the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
#: Old module or class, by its full name, and the new one.
CLASSES: Mapping[str, str] = {f"atbench.{old}": f"atbench.{new}" for old, new in _TABLE["classes"].items()}
#: Old key of a configuration and the new one; what lies below moves with it.
KEYS: Mapping[str, str] = _TABLE["keys"]
_ARGUMENTS, _SECTIONS = _TABLE["arguments"], _TABLE["sections"]


def renamed_class(name: str) -> str:
    """The name that a class or function of atbench has now."""
    for old, new in CLASSES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of an earlier version in the names of this one; one of this version as it is."""
    return {
        name: _node(_keys(part, _SECTIONS[name]) if name in _SECTIONS and isinstance(part, Mapping) else part)
        for name, part in config.items()
    }


def renamed_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation record of schema 2 as one of schema 3."""
    if record.get("schema") != 2:
        return dict(record)
    plan = _keys(record["plan"], _SECTIONS["eval"])
    attacks = [
        {**_keys(entry, {"knowledge": "access"}), "settings": _node(entry["settings"])} for entry in record["attacks"]
    ]
    return {**record, "schema": 3, "plan": _node(plan), "attacks": attacks}


def renamed_override(word: str) -> tuple[str, str | None]:
    """An override `key=value` with the key that is valid now, and the old key where it has changed."""
    prefix = word[: len(word) - len(word.lstrip("+~"))]
    key, equals, value = word.removeprefix(prefix).partition("=")
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return prefix + new + key.removeprefix(old) + equals + value, old
    return word, None


def _keys(node: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in node.items()}


def _node(node: Any) -> Any:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            target = renamed_class(target)
            names: Mapping[str, str] = next(
                (table for start, table in _ARGUMENTS.items() if target.startswith(start)), {}
            )
            node = {**_keys(node, names), "_target_": target}
        inner = {key: _node(value) for key, value in node.items()}
        if isinstance(about := inner.get("about"), Mapping):
            inner["about"] = _keys(about, {"line": "summary"})
        return inner
    return [_node(each) for each in node] if isinstance(node, list) else node
