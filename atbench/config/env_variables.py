"""`${oc.env:NAME}` references: resolved for use, kept as references in everything that is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from atbench.config.tree import select, walk

_READS = re.compile(r"\$\{\s*oc\.env\s*:")
_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")
_DEPTH = 20  # references to references


def restore_env_references(value: Any, raw: Any, tree: Mapping[str, Any], key: str = "") -> Any:
    """`value`, resolved, with every text that comes from the environment as it stands in `raw`. Numbers stay: a run
    says what it ran with, and a secret is a text.

    `raw` is the same node unresolved, at the dotted `key` in the unresolved `tree`.
    """
    if isinstance(raw, str):
        # A whole node may be a reference (`a: ${b}`): kept as one if anything in what it refers to is read.
        return raw if isinstance(value, (str, Mapping, list)) and _reads_env(raw, tree, key) else value

    def restored(name: object, inner: Any, unresolved: Any) -> Any:
        return restore_env_references(inner, unresolved, tree, f"{key}.{name}" if key else str(name))

    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        return {name: restored(name, inner, raw.get(name)) for name, inner in value.items()}
    if isinstance(value, list) and isinstance(raw, list):
        return [restored(at, inner, one) for at, (inner, one) in enumerate(zip(value, raw, strict=True))]
    return value


def _reads_env(node: Any, tree: Mapping[str, Any], key: str, depth: int = 0) -> bool:
    """Whether an unresolved node at `key`, or what it refers to, reads the environment."""
    for place, text in walk(node, key):
        if not isinstance(text, str) or depth > _DEPTH:
            continue
        if _READS.search(text):
            return True
        for dots, name in _REFERENCE.findall(text):
            above = place.split(".")[: -len(dots)] if dots else []
            whole = ".".join([*above, name])
            if _reads_env(select(tree, whole), tree, whole, depth + 1):
                return True
    return False
