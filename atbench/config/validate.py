"""Checks of a resolved configuration before the run: arguments, ranges, choices, doubtful settings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from atbench.config import ranges
from atbench.config.instantiate import check_target
from atbench.config.ranges import Range
from atbench.config.tree import select, walk
from atbench.errors import ConfigError, hint

_NAMES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RANGES: Mapping[str, Range] = {key: getattr(ranges, name.upper()) for key, name in _NAMES.items()}
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "train.precision.attack": ("fp32", "bf16"),
    "train.precision.update": ("fp32", "bf16"),
    "train.channels_last": ("auto", True, False),
    "train.capture": ("auto", True, False),
    "guard.collapse": ("warn", "stop", "rollback"),
    "train.weight_decay_on": ("all", "weights", "convolutions"),
}


def validate_config(cfg: Mapping[str, Any]) -> list[str]:
    """Refuse a resolved configuration that cannot be run; return a warning for each setting that is merely doubtful.

    Imports what the configuration names, hence torch; builds nothing and touches no disk. Whether a device that has a
    possible name is there is for the run to find out. Raises ConfigError.
    """
    _check_trainable_attack(cfg)
    _check_radius(cfg)  # before the rest: ε = 8 is the costliest mistake, and whatever else is wrong should not hide it
    for path, node in walk(cfg, about=False):
        if isinstance(node, Mapping) and "_target_" in node:
            check_target(node, path)
    for pattern, numbers in RANGES.items():
        for key, value in _matching(cfg, pattern):
            _check_range(key, value, numbers)
    for key, known in CHOICES.items():
        value = select(cfg, key)
        if value is not None and not any(
            value is choice or (value == choice and isinstance(value, str)) for choice in known
        ):
            names = ["true" if choice is True else "false" if choice is False else choice for choice in known]
            raise ConfigError(key, value, "there is no such choice", hint(str(value), names))
    if (threads := select(cfg, "threads")) != "auto":
        _check_range("threads", threads, ranges.COUNT)
    _check_device(str(select(cfg, "device")))
    name = select(cfg, "eval.name")
    if name is not None and (name in ("earlier", "parts") or not re.fullmatch(r"\w[\w+-]*", str(name))):
        raise ConfigError("eval.name", name, "cannot be the name of a folder", "use letters, digits, - and _")
    _check_own_attack(cfg)
    _check_checkpoints(cfg)
    if select(cfg, "logger.tensorboard") and importlib.util.find_spec("tensorboard") is None:
        fix = "install the extra: pip install 'atbench[tensorboard]'"
        raise ConfigError("logger", "tensorboard", "needs the package tensorboard", fix)
    return list(_warnings(cfg))


def _check_trainable_attack(cfg: Mapping[str, Any]) -> None:
    """Refuse an attack that cannot train: those for evaluation take their threat model from it and have no `norm`."""
    attack = select(cfg, "attack")
    if select(cfg, "method") is not None and isinstance(attack, Mapping) and "norm" not in attack:
        why = "it attacks trained networks and maximises no objective of a method's"
        fix = "train with attack=pgd, then write `atbench eval RUN attack=...`"
        raise ConfigError("attack", select(cfg, "attack.about.name"), why, fix)


def _check_own_attack(cfg: Mapping[str, Any]) -> None:
    """Refuse an attack that differs from the method's own in the keys that its `about.attack` names, such as FGSM
    training with seven steps. The command line and an experiment are composed after the method and would override it.
    """
    for key, own in (select(cfg, "method.about.attack") or {}).items():
        value = select(cfg, f"attack.{key}")
        if value != own:
            spelled = f"{own:.4g}" if isinstance(own, float) else str(own)
            why = f"{select(cfg, 'method.about.name')} is the method that has {spelled} there"
            fix = "leave it out, or name the variant: a method of your own beside --config-dir"
            raise ConfigError(f"attack.{key}", value, why, fix)


def _check_checkpoints(cfg: Mapping[str, Any]) -> None:
    """Refuse to evaluate after training a checkpoint that training does not write."""
    every, epochs = select(cfg, "train.checkpoint.every"), select(cfg, "train.epochs")
    if epochs is None:
        return
    kept = [f"epoch_{epoch}" for epoch in range(every, epochs + 1, every)] if every else []
    for name in select(cfg, "eval.checkpoints") or ():
        if name not in ("best", "last", *kept):
            why = (
                f"training writes best, last{' and ' + ', '.join(kept[:3]) if kept else ''}{', ...' * (len(kept) > 3)}"
            )
            raise ConfigError("eval.checkpoints", name, why, "set train.checkpoint.every, or leave it out")


def _check_radius(cfg: Mapping[str, Any]) -> None:
    for part in ("eval", "attack"):
        norm, eps = select(cfg, f"{part}.norm") or select(cfg, "attack.norm"), select(cfg, f"{part}.eps")
        if norm == "linf" and isinstance(eps, (int, float)) and eps > 1:
            close = f"did you mean {part}.eps={eps:g}/255?"
            fix = close if eps <= 255 else "write it as a fraction, for example 8/255"
            why = "pixels lie in [0, 1], so an L∞ ball above 1 holds every image"
            raise ConfigError(f"{part}.eps", f"{eps:g}", why, fix)


def _check_range(key: str, value: Any, numbers: Range) -> None:
    if value is None:
        return
    if isinstance(value, Collection) and not isinstance(value, str):
        for element in value:
            _check_range(key, element, numbers)
    elif value not in numbers:
        raise ConfigError(key, value, f"must be {numbers.description}", "correct the value")


def _check_device(name: str) -> None:
    kind, _, index = name.partition(":")
    if name in ("auto", "cpu"):
        return
    if kind != "cuda" or (":" in name and not index.isdigit()):
        raise ConfigError("device", name, "there is no such device", hint(name, ["auto", "cpu", "cuda", "cuda:1"]))


def _warnings(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Of a radius far from the data set's own for that norm, in training or evaluation; of a rate of 0."""
    for part in ("attack", "eval"):
        norm, eps = select(cfg, f"{part}.norm") or select(cfg, "attack.norm"), select(cfg, f"{part}.eps")
        usual = select(cfg, f"dataset.threat.{norm}.eps")
        if _number(eps) and _number(usual) and eps and usual and not usual / 8 < eps < usual * 8:
            size = "tiny" if eps < usual else "huge"
            yield f"{part}.eps: {eps:.3g} is {size} for {norm}, where {usual:.3g} is usual for these images"
            break
    eps, small = select(cfg, "attack.eps"), select(cfg, "dataset.threat.linf.eps")
    if select(cfg, "attack.norm") == "l2" and _number(small) and _number(eps) and 0 < eps <= small:
        yield f"attack.eps: {eps:.3g} is the size of an L-infinity radius, and tiny in L2"
    for pattern in ("train.optimizer.lr", "train.groups.*.optimizer.lr"):
        yield from (f"{key}: 0 trains nothing" for key, value in _matching(cfg, pattern) if value == 0)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _matching(cfg: Mapping[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    """Every key of the configuration that fits a dotted pattern, in which `*` is any one name, with its value."""
    first, star, rest = pattern.partition(".*")
    if not star:
        yield pattern, select(cfg, pattern)
        return
    section = select(cfg, first)
    for name in section if isinstance(section, Mapping) else ():
        yield from _matching(cfg, f"{first}.{name}{rest}")
