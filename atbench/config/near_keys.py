"""Keys of a composed configuration that a mistyped one most likely stands for: `lr` for `train.optimizer.lr`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from atbench.config.tree import select, walk

_SECTIONS = ("attack", "method", "train", "model", "dataset", "eval")  # of two keys at one depth the first is meant
_OTHERS = ("hydra.", "experiment.", "dataset.train.")  # no settings of a run by themselves
_SHOWN = 3
#: What other libraries call our keys.
_ALSO = {
    "epsilon": "eps", "learning_rate": "lr", "num_epochs": "epochs", "num_steps": "steps", "iterations": "steps",
    "bs": "batch_size", "alpha": "step_size", "wd": "weight_decay",
}  # fmt: skip


def near_keys(tree: Mapping[str, Any], key: str) -> list[str]:
    """Keys of `tree`, plain values, that end in the dotted `key`, the likeliest first; where `key` lies in a section
    that exists, those of this section, if there are any. Without one, the key whose name is nearly that of `key`.
    Dashes count as underscores, as in options.
    """
    parent, _, leaf = key.replace("-", "_").rpartition(".")
    known = sorted(_keys(tree), key=_rank)
    names = dict.fromkeys(path.rpartition(".")[2] for path in known)
    if leaf not in names:
        close = difflib.get_close_matches(leaf, names, n=1, cutoff=0.8)
        leaf = _ALSO.get(leaf) or (close[0] if close else leaf)
    ends = [path for path in known if f".{path}".endswith(f".{leaf}")]
    if parent and isinstance(select(tree, parent), Mapping):
        return [path for path in ends if path.startswith(f"{parent}.")] or ends
    return [path for path in ends if f".{path}".endswith(f".{parent}.{leaf}" if parent else f".{leaf}")]


def suggestion(keys: list[str], value: str | None) -> str:
    """The fix in a message: the first of `keys` as it is written, and the next ones."""
    first, *others = keys[: _SHOWN + 1]
    more = f" (or {', '.join(others)})" if others else ""
    return f"write {first}={'...' if value is None else value}{more}"


def _keys(tree: Mapping[str, Any]) -> Iterator[str]:
    """The dotted keys that a line sets: no entries of lists, and no class names."""
    for path, _ in walk(tree, about=False):
        parts = path.split(".")
        told = f"{path}.".startswith(_OTHERS) or parts[-1].startswith("_") or any(part.isdigit() for part in parts)
        if path and not told:
            yield path


def _rank(path: str) -> tuple[int, int, str]:
    section, _, _ = path.partition(".")
    return path.count("."), _SECTIONS.index(section) if section in _SECTIONS else len(_SECTIONS), path
