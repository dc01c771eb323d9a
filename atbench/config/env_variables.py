"""`${oc.env:NAME}` references: resolved for use, kept as references in everything that is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_READS = re.compile(r"\$\{\s*oc\.env\s*:")
_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")
_DEPTH = 20  # references to references


def restore_env_references(value: Any, raw: Any, tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """`value`, resolved, with every text that comes from the environment as it stands in `raw`. Numbers stay: a run
    says what it ran with, and a secret is a text.

    `raw` is the same node unresolved, at `path` in the unresolved `tree`.
    """
    if isinstance(value, str):
        return raw if isinstance(raw, str) and _reads_env(raw, tree, path) else value
    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        return {
            key: restore_env_references(inner, raw.get(key), tree, (*path, str(key))) for key, inner in value.items()
        }
    if isinstance(value, list) and isinstance(raw, list):
        pairs = enumerate(zip(value, raw, strict=True))
        return [restore_env_references(inner, one, tree, (*path, str(position))) for position, (inner, one) in pairs]
    # A whole node that is a reference (`a: ${b}`): kept as one if anything in what it refers to is read.
    return raw if isinstance(raw, str) and isinstance(value, (Mapping, list)) and _reads_env(raw, tree, path) else value


def select(tree: Any, path: Sequence[str]) -> Any:
    """The value at a path of names and positions, None where there is none."""
    for part in path:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return None
    return tree


def _reads_env(raw: Any, tree: Mapping[str, Any], path: tuple[str, ...], depth: int = 0) -> bool:
    """Whether an unresolved value, or what it refers to, reads the environment."""
    if isinstance(raw, Mapping):
        return any(_reads_env(inner, tree, (*path, str(key)), depth) for key, inner in raw.items())
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        return any(_reads_env(inner, tree, (*path, str(position)), depth) for position, inner in enumerate(raw))
    if not isinstance(raw, str) or depth > _DEPTH:
        return False
    if _READS.search(raw):
        return True
    for dots, name in _REFERENCE.findall(raw):
        whole = (*path[: max(len(path) - len(dots), 0)], *name.split(".")) if dots else tuple(name.split("."))
        if _reads_env(select(tree, whole), tree, whole, depth + 1):
            return True
    return False
