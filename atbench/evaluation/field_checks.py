"""A record and its arrays compared with another, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

import numpy as np

from atbench.evaluation.metrics import Array

#: Fields that are not compared: cost and versions.
FREE = frozenset({"seconds", "forwards", "gradients", "forward_passes", "gradient_passes", "versions"})
#: How far logits may lie apart when they are computed in another batch or on another device, in parts of the largest.
LOGITS = 0.01
#: The same of figures that are taken from logits themselves. Masks and counts must be equal.
CLOSE: Mapping[str, float] = {"reject.threshold": 1e-4, "reject.auc": 1e-3}
#: Arrays that are logits, or made of them.
ROUNDED = frozenset({"logits_clean", "logits_adversarial", "confidence_adversarial"})


@dataclass(frozen=True)
class FieldCheck:
    """One value of a record, or one of its arrays as a whole, as recorded and recomputed."""

    name: str
    recorded: Any
    recomputed: Any
    agrees: bool


def recorded_threshold(record: Mapping[str, Any], recomputed: float) -> float:
    """The recorded threshold of a rejection where it is the recomputed one up to rounding, else the recomputed."""
    reject = record.get("reject")
    tau = reject.get("threshold") if isinstance(reject, Mapping) else None
    return tau if isinstance(tau, float) and abs(tau - recomputed) <= CLOSE["reject.threshold"] else recomputed


def field_checks(
    record: Mapping[str, Any], recomputed: Mapping[str, Any], tolerance: float = 1e-12
) -> Iterator[FieldCheck]:
    """All leaves of both, in the order of the record; figures may differ by `tolerance`, or by what CLOSE says."""
    old, new = dict(_leaves(record)), dict(_leaves(recomputed))
    for name in dict.fromkeys([*old, *new]):
        if FREE.isdisjoint(name.split(".")):
            values = old.get(name, "nothing"), new.get(name, "nothing")
            yield FieldCheck(name, *values, _values_agree(*values, CLOSE.get(name, tolerance)))


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no container; an empty container is a value. An entry of a list goes by its
    name if it has one.
    """
    if isinstance(node, Mapping) and node:
        for key, inner in node.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and node:
        names = [each.get("name", each.get("class")) if isinstance(each, Mapping) else None for each in node]
        labels = names if None not in names and len({*map(str, names)}) == len(names) else range(len(node))
        yield f"{path} (order)", [str(label) for label in labels]
        for label, inner in zip(labels, node, strict=True):
            yield from _leaves(inner, f"{path}.{label}")
    else:
        yield path, node


def _values_agree(old: Any, new: Any, tolerance: float) -> bool:
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (old, new))
    if numbers:
        return isclose(old, new, rel_tol=1e-9, abs_tol=tolerance)
    return type(old) is type(new) and old == new


def array_checks(prefix: str, recorded: Mapping[str, Array], recomputed: Mapping[str, Array]) -> Iterator[FieldCheck]:
    for name in dict.fromkeys([*recorded, *recomputed]):
        old, new = recorded.get(name), recomputed.get(name)
        texts = _describe_array(old), _describe_array(new, old)
        yield FieldCheck(f"{prefix}{name}", *texts, arrays_agree(name, old, new))


def arrays_agree(name: str, old: Array | None, new: Array | None) -> bool:
    """Whether two arrays are equal, or up to LOGITS if they are made of logits. NaN equals NaN."""
    if old is None or new is None or old.shape != new.shape or old.dtype.kind != new.dtype.kind:
        return False
    if old.dtype.kind != "f":
        return bool(np.array_equal(old, new))
    scale = np.abs(new[np.isfinite(new)]).max(initial=0.0)
    tolerance = LOGITS * scale if name in ROUNDED else 1e-6 * scale
    return bool(np.allclose(old, new, rtol=0, atol=tolerance, equal_nan=True))


def _describe_array(array: Array | None, other: Array | None = None) -> str:
    """An array as text: type, shape, and how many of its values differ from another one's."""
    if array is None:
        return "nothing"
    shape = "×".join(map(str, array.shape)) or "1"
    if other is None or other.shape != array.shape or other.dtype.kind != array.dtype.kind:
        return f"{array.dtype.kind}{array.dtype.itemsize} {shape}"
    apart = int((~((array == other) | ((array != array) & (other != other)))).sum())
    return f"{array.dtype.kind}{array.dtype.itemsize} {shape}, {apart} differ"
