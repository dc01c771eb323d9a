"""Nested configurations, of plain values or OmegaConf's nodes: the value at a dotted key, and all nodes with theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def select(tree: Any, key: str) -> Any:
    """The value at a dotted key, in which an entry of a list goes by its position; None where there is none. The tree
    itself is at "".
    """
    for part in key.split(".") if key else ():
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, Sequence) and not isinstance(tree, str) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return None
    return tree


def walk(node: Any, key: str = "", about: bool = True) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of a node, which lies at `key`, and of everything below it, outermost first. `about`: also
    what is only told about options, which nothing is built from.
    """
    yield key, node
    if isinstance(node, Mapping):
        children: Any = ((name, inner) for name, inner in node.items() if about or name != "about")
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        children = enumerate(node)
    else:
        return
    for name, inner in children:
        yield from walk(inner, f"{key}.{name}" if key else str(name), about)
