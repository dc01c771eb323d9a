"""Entry in the format of RobustBench's model_info files, from an evaluation record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atbench.config.tree import select
from atbench.reporting.results import STANDARD, bound_text, is_autoattack, robustness_unknown


def leaderboard_entry(config: Mapping[str, Any], record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry: accuracies in percent as text, like theirs; null for what the record does not hold.

    `reported` is the worst case over all attacks of the record, `autoattack_acc` that of the four of AutoAttack and
    whatever ran before them, null where they did not run in full. `unreliable` is the audit's verdict, null where there
    was no audit.
    """
    return {
        "link": None,
        "name": name,
        "authors": None,
        # Whether extra data was trained on; unknown of an external network.
        "additional_data": select(config, "train.extra_data.path") is not None if "train" in config else None,
        "number_forward_passes": 1,
        "dataset": select(config, "dataset.about.name"),
        "venue": None,
        "architecture": select(config, "model.about.name") or select(config, "model._target_"),
        "eps": eps_text(float(record["threat"]["eps"])),
        "clean_acc": _percent(record["clean"]),
        "reported": None if robustness_unknown(record) else _percent(record["robust"]),
        "autoattack_acc": _percent(after) if (after := after_autoattack(record)) else None,
        "footnote": footnote(record),
        "unreliable": not record["audit"]["trusted"] if was_audited(record) else None,
    }


def after_autoattack(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The accuracy after the last of AutoAttack's four; None where they are not AutoAttack as its authors run it."""
    if not is_autoattack(record) or robustness_unknown(record):
        return None
    return [attack for attack in record["attacks"] if attack["name"] in STANDARD][-1]["after"]


def was_audited(record: Mapping[str, Any]) -> bool:
    return any(check["verdict"] != "not run" for check in record["audit"]["checks"])


def footnote(record: Mapping[str, Any]) -> str:
    """Threat, images, attacks and audit of the accuracies."""
    robust = record["robust"]
    bounds = f"[{100 * robust['low']:.2f}, {100 * robust['high']:.2f}]"
    audit = f"audit: {record['audit']['sentence']}" if was_audited(record) else "the evaluation was not audited"
    images = f"{record['threat']['norm']}, {record['n']} images of the {record['split']} split"
    return f"{images}; reported: {bound_text(record)}, 95 % interval {bounds}; {audit}"


def eps_text(eps: float) -> str:
    """ε as in their entries: `8/255` where it is a whole number of grey levels, else a decimal."""
    levels = 255 * eps
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-4 and eps < 1 else f"{eps:g}"


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.2f}"
