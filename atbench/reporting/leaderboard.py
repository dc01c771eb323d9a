"""An entry as RobustBench's model_info files have them, of what an evaluation record holds and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atbench.reporting.runs import lookup

#: AutoAttack's version `standard` (Croce & Hein 2020, fra31/auto-attack): what each of its four has at least.
STANDARD: Mapping[str, Mapping[str, int]] = {
    "apgd_ce": {"steps": 100},
    "apgd_t": {"steps": 100, "targets": 9},
    "fab_t": {"steps": 100, "targets": 9},
    "square": {"steps": 5000},
}
#: Where its L1 version differs.
STANDARD_L1: Mapping[str, Mapping[str, int]] = {
    **STANDARD,
    "apgd_ce": {"steps": 100, "restarts": 5},
    "apgd_t": {"steps": 100, "targets": 5},
    "fab_t": {"steps": 100, "targets": 5},
}


def entry(config: Mapping[str, Any], record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry: accuracies in percent as text, as theirs are; null for what no record knows.

    `reported` is the worst case over all attacks of the record, `autoattack_acc` that of the four of AutoAttack and
    whatever ran before them, null where they did not run in full. `unreliable` is the audit's verdict, null where there
    was no audit.
    """
    audit = record["audit"]
    return {
        "link": None,
        "name": name,
        "authors": None,
        "additional_data": _additional_data(config),
        "number_forward_passes": 1,
        "dataset": lookup(config, "dataset.about.name"),
        "venue": None,
        "architecture": lookup(config, "model.about.name") or lookup(config, "model._target_"),
        "eps": radius(float(record["threat"]["eps"])),
        "clean_acc": _percent(record["clean"]),
        "reported": _percent(record["robust"]),
        "autoattack_acc": _percent(found) if (found := autoattack(record)) else None,
        "footnote": footnote(record),
        "unreliable": not audit["trusted"] if audit["checks"] else None,
    }


def autoattack(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The accuracy after AutoAttack's four, in the record; None unless all four ran with at least its effort."""
    wanted = STANDARD_L1 if record["threat"]["norm"] == "l1" else STANDARD
    ran = [attack for attack in record["attacks"] if _enough(attack, wanted.get(attack["name"]))]
    if {attack["name"] for attack in ran} != wanted.keys():
        return None
    after: Mapping[str, Any] = ran[-1]["after"]
    return after


def _enough(attack: Mapping[str, Any], least: Mapping[str, int] | None) -> bool:
    return least is not None and all(attack["settings"].get(key, 0) >= count for key, count in least.items())


def footnote(record: Mapping[str, Any]) -> str:
    """What the figures rest on: threat, images, attacks, audit."""
    threat, audit, attacks = record["threat"], record["audit"], ", ".join(record["robust"]["attacks"])
    robust = record["robust"]
    bounds = f"[{100 * robust['low']:.2f}, {100 * robust['high']:.2f}]"
    parts = [
        f"{threat['norm']}, {record['n']} images of the {record['split']} split",
        f"reported: worst case of {attacks}, {record['bound']} bound, 95 % interval {bounds}",
        f"audit: {audit['sentence']}" if audit["checks"] else "the evaluation was not audited",
    ]
    return "; ".join(parts)


def radius(eps: float) -> str:
    """ε as their entries write it: `8/255` where it is a whole number of grey levels, else a decimal."""
    levels = 255 * eps
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-4 and eps < 1 else f"{eps:g}"


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.2f}"


def _additional_data(config: Mapping[str, Any]) -> bool | None:
    """Whether images from outside the data set were trained on; of a network of others that is not known."""
    return lookup(config, "train.pool.path") is not None if "train" in config else None
