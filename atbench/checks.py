"""Everything about a configuration that can be known before any work: arguments, ranges, choices, doubtful settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from atbench.build import checked
from atbench.errors import ConfigError
from atbench.mistakes import hint

Test = tuple[Callable[[float], bool], str]

_POSITIVE: Test = (lambda value: value > 0, "must be above 0")
_COUNT: Test = (lambda value: value >= 1 and value == int(value), "must be a whole number from 1")
_ANY_COUNT: Test = (lambda value: value >= 0 and value == int(value), "must be a whole number from 0")
_SHARE: Test = (lambda value: 0 < value <= 1, "must be a share above 0, at most 1")
_BELOW_ONE: Test = (lambda value: 0 <= value < 1, "must be from 0 to below 1")
_SEVERITY: Test = (lambda value: value in range(1, 6), "must be a severity from 1 to 5")
_NOT_NEGATIVE: Test = (lambda value: value >= 0, "must not be negative")

# null passes where it is in the configuration: the schema says which keys may be null.
RANGES: Mapping[str, Test] = MappingProxyType(
    {
        "seed": _ANY_COUNT,
        "threads": _COUNT,
        "model.members": _COUNT,
        "attack.eps": _NOT_NEGATIVE,
        "attack.step_size": _NOT_NEGATIVE,
        "attack.steps": _ANY_COUNT,
        "train.epochs": _COUNT,
        "train.batch_size": _COUNT,
        "train.clip_norm": _POSITIVE,
        "train.label_smoothing": _BELOW_ONE,
        "train.pool.labelled": _SHARE,
        "train.pool.fraction": _BELOW_ONE,
        "train.selection.steps": _ANY_COUNT,
        "train.selection.n": _COUNT,
        "train.selection.every": _COUNT,
        "train.checkpoint.minutes": _POSITIVE,
        "train.checkpoint.steps": _COUNT,
        "train.minutes": _POSITIVE,
        "eval.steps": _ANY_COUNT,
        "eval.eps": _NOT_NEGATIVE,
        "eval.audit": _ANY_COUNT,
        "eval.corruptions": _SEVERITY,
        "eval.reject": _SHARE,
        "eval.reject_steps": _COUNT,
        "eval.reject_restarts": _COUNT,
        "eval.restarts": _COUNT,
        "eval.eps_grid": _NOT_NEGATIVE,
        "eval.eps_steps": _COUNT,
        "eval.batch_size": _COUNT,
        "eval.limit": _COUNT,
        "eval.step_size": _POSITIVE,
    }
)
CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "train.precision.attack": ("fp32", "bf16"),
        "train.precision.update": ("fp32", "bf16"),
        "train.channels_last": ("auto", True, False),
        "train.decay": ("all", "weights"),
    }
)


def check(cfg: Mapping[str, Any]) -> list[str]:
    """Refuse a resolved configuration that cannot be run; return a warning for each setting that is merely doubtful.

    Imports what the configuration names, hence torch; builds nothing and touches no disk. Whether a device that has a
    possible name is there is for the run to find out. Raises ConfigError.
    """
    _trainable(cfg)
    _radius(cfg)  # before the rest: ε = 8 is the costliest mistake, and whatever else is wrong should not hide it
    for path, node in _targets(cfg, ""):
        checked(node, path)
    for key, test in RANGES.items():
        _in_range(key, _at(cfg, key), test)
    for key, known in CHOICES.items():
        value = _at(cfg, key)
        if value is not None and not any(
            value is choice or (value == choice and isinstance(value, str)) for choice in known
        ):
            names = ["true" if choice is True else "false" if choice is False else choice for choice in known]
            raise ConfigError(key, value, "there is no such choice", hint(str(value), names))
    _device(str(_at(cfg, "device")))
    _folder_name("eval.name", _at(cfg, "eval.name"))
    return list(_doubts(cfg))


def _trainable(cfg: Mapping[str, Any]) -> None:
    """A method hands its objective to a search; an attack of the evaluation, which takes its threat from there, has no
    norm of its own.
    """
    attack = _at(cfg, "attack")
    if _at(cfg, "method") is not None and isinstance(attack, Mapping) and "norm" not in attack:
        why = "it attacks trained networks and maximises no objective of a method's"
        fix = "train with attack=pgd, then write `atbench eval RUN attack=...`"
        raise ConfigError("attack", _at(cfg, "attack.about.name"), why, fix)


def _radius(cfg: Mapping[str, Any]) -> None:
    for part in ("eval", "attack"):
        norm, eps = _at(cfg, f"{part}.norm") or _at(cfg, "attack.norm"), _at(cfg, f"{part}.eps")
        if norm == "linf" and isinstance(eps, (int, float)) and eps > 1:
            close = f"did you mean {part}.eps={eps:g}/255?"
            fix = close if eps <= 255 else "write it as a fraction, for example 8/255"
            why = "pixels lie in [0, 1], so an L∞ ball above 1 holds every image"
            raise ConfigError(f"{part}.eps", f"{eps:g}", why, fix)


def _in_range(key: str, value: Any, test: Test) -> None:
    fulfilled, requirement = test
    if value is None:
        return
    if isinstance(value, Collection) and not isinstance(value, str):
        for element in value:
            _in_range(key, element, test)
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not fulfilled(value):
        raise ConfigError(
            key, value, requirement if number else f"is not a number; it {requirement}", "correct the value"
        )


def _device(name: str) -> None:
    kind, _, index = name.partition(":")
    if name in ("auto", "cpu"):
        return
    if kind != "cuda" or (":" in name and not index.isdigit()):
        raise ConfigError("device", name, "there is no such device", hint(name, ["auto", "cpu", "cuda", "cuda:1"]))


def _folder_name(key: str, name: Any) -> None:
    if name is not None and (name in ("earlier", "parts") or not re.fullmatch(r"\w[\w+-]*", str(name))):
        raise ConfigError(key, name, "cannot be the name of a folder", "use letters, digits, - and _")


def _unusual(cfg: Mapping[str, Any]) -> Iterator[str]:
    """A radius that is far from what the data set knows for its norm: of an evaluation, too, that trains nothing."""
    for part in ("attack", "eval"):
        norm, eps = _at(cfg, f"{part}.norm") or _at(cfg, "attack.norm"), _at(cfg, f"{part}.eps")
        usual = _at(cfg, f"dataset.threat.{norm}.eps")
        if all(isinstance(value, (int, float)) for value in (eps, usual)) and eps and not usual / 8 < eps < usual * 8:
            size = "tiny" if eps < usual else "huge"
            yield f"{part}.eps: {eps:.3g} is {size} for {norm}, where {usual:.3g} is usual for these images"
            return


def _doubts(cfg: Mapping[str, Any]) -> Iterator[str]:
    yield from _unusual(cfg)
    eps, step, steps = (_at(cfg, f"attack.{key}") for key in ("eps", "step_size", "steps"))
    if not all(isinstance(value, (int, float)) for value in (eps, step, steps)) or not eps or not steps:
        return
    if steps * step < eps * (1 - 1e-9):
        yield f"attack: {steps} steps of {step:.3g} cannot reach the edge of the ball, eps {eps:.3g}"
    if step > 2 * eps:
        yield f"attack.step_size: {step:.3g} is more than the ball's diameter, 2 x eps {eps:.3g}"
    small = _at(cfg, "dataset.threat.linf.eps")
    if _at(cfg, "attack.norm") == "l2" and isinstance(small, (int, float)) and eps <= small:
        yield f"attack.eps: {eps:.3g} is the size of an L-infinity radius, and tiny in L2"


def _targets(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with `_target_`, outermost first, with its path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        children: Any = ((str(key), value) for key, value in node.items() if key != "about")
    elif isinstance(node, Collection) and not isinstance(node, (str, bytes)):
        children = ((str(position), value) for position, value in enumerate(node))
    else:
        return
    for key, value in children:
        yield from _targets(value, f"{path}.{key}" if path else key)


def _at(cfg: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None where there is none: a configuration of `eval` has no section `train`."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node
