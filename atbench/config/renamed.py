"""Renamed classes, config keys and record fields of version 0.1.0, whose run folders and command lines still work.

To be removed with the version after the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLASSES = {
    "attacks.apgd": "attacks.gradient.apgd",
    "attacks.confident.Confident": "attacks.gradient.max_confidence.MaxConfidence",
    "attacks.cw": "attacks.min_norm.cw",
    "attacks.deepfool": "attacks.min_norm.deepfool",
    "attacks.diverse": "attacks.gradient.di_fgsm",
    "attacks.estimate": "attacks.black_box.spsa_nes",
    "attacks.fab": "attacks.min_norm.fab",
    "attacks.feature": "attacks.gradient.feature",
    "attacks.fmn": "attacks.min_norm.fmn",
    "attacks.foreign": "attacks.foolbox",
    "attacks.gama": "attacks.gradient.gama",
    "attacks.md": "attacks.gradient.margin_decomposition",
    "attacks.noise": "attacks.black_box.noise",
    "attacks.odi": "attacks.gradient.odi",
    "attacks.pgd": "attacks.gradient.pgd",
    "attacks.relaxation": "attacks.gradient.constraint_relaxation",
    "attacks.search": "attacks.ascent.gradient_ascent",
    "attacks.square": "attacks.black_box.square",
    "attacks.targeted": "attacks.gradient.multitargeted",
    "attacks.transfer": "attacks.gradient.transfer",
    "data.arrays": "data.npz",
    "data.folders": "data.image_folder",
    "data.mixing": "data.mixup",
    "data.published": "data.torchvision_sets",
    "models.library": "models.torchvision_models",
    "training.averaging": "training.weight_averaging",
    "training.awp": "training.weight_perturbation",
}
#: Old module or class, by its full name, and the new one.
CLASSES: Mapping[str, str] = {f"atbench.{old}": f"atbench.{new}" for old, new in _CLASSES.items()}
#: Old key of a configuration and the new one; what lies below moves with it.
KEYS: Mapping[str, str] = {
    "attack.draws": "attack.eot_samples",
    "attack.keep": "attack.return_point",
    "eval.survivors": "eval.sequential",
    "train.decay": "train.weight_decay_on",
    "train.minutes": "train.time_limit",
    "train.pool": "train.extra_data",
    **{f"method.reach.{norm}": f"method.rel_path_length.{norm}" for norm in ("linf", "l2", "l1")},
}
_ARGUMENTS = {
    "atbench.attacks.": {"draws": "eot_samples", "keep": "return_point"},
    "atbench.methods.msd.": {"reach": "rel_path_length"},
    "atbench.methods.multi_norm.": {"reach": "rel_path_length"},
}
_SECTIONS = {
    "train": {"decay": "weight_decay_on", "minutes": "time_limit", "pool": "extra_data"},
    "eval": {"survivors": "sequential"},
}


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
            names = next((table for start, table in _ARGUMENTS.items() if target.startswith(start)), {})
            node = {**_keys(node, names), "_target_": target}
        inner = {key: _node(value) for key, value in node.items()}
        if isinstance(about := inner.get("about"), Mapping):
            inner["about"] = _keys(about, {"line": "summary"})
        return inner
    return [_node(each) for each in node] if isinstance(node, list) else node
