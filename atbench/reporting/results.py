"""Evaluation records as typed values, and the names of their attacks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atbench.config.renamed import renamed_record
from atbench.errors import DataError
from atbench.interval import accuracy_figures
from atbench.reporting.wording import options_text

SCHEMA = 3
AUTOATTACK = "AutoAttack (standard)"
# The four attacks of version `standard` and the least that each spends (Croce & Hein 2020, fra31/auto-attack).
STANDARD = {
    "apgd_ce": {"steps": 100},
    "apgd_t": {"steps": 100, "targets": 9},
    "fab_t": {"steps": 100, "targets": 9},
    "square": {"steps": 5000},
}
RAND = {"apgd_ce": 20, "apgd_dlr": 20}  # passes averaged by its version `rand`
STANDARD_L1 = {"apgd_ce": {"restarts": 5}, "apgd_t": {"targets": 5}}

Array = NDArray[Any]


@dataclass(frozen=True)
class Accuracy:
    """A share of n examples and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, mask: Array) -> Accuracy:
        """The share of a mask (n,) of booleans."""
        accuracy, low, high = accuracy_figures(int(mask.sum()), mask.size).values()
        return cls(accuracy, low, high)


@dataclass(frozen=True)
class AttackFigures:
    """One attack of a record.

    tried, broken: how many examples it ran on and broke. alone: accuracy under it by itself, None where it ran only on
    what was still robust. after: accuracy under it and all attacks before it. distance: of a minimum-norm attack,
    quartiles of the distance to the nearest misclassified image.
    """

    name: str
    access: str
    settings: Mapping[str, Any]
    tried: int
    broken: int
    broken_eight_bit: int
    alone: Accuracy | None
    after: Accuracy
    seconds: float
    forwards: int
    gradients: int
    distance: Mapping[str, Any] | None

    @property
    def words(self) -> str:
        """Its options on one line, without norm and ε."""
        return options_text({key: value for key, value in self.settings.items() if key not in ("norm", "eps")})


@dataclass(frozen=True)
class EvaluationRecord:
    """One record of `evaluation/`: a checkpoint's accuracies on a split, with and without attack.

    epoch: None for an external network. steps, eps: PGD over k and over the radius (ε, k, accuracy); empty without a
    sweep. robust: right without and under every attack; eight_bit: the same with 8-bit adversarial images. norms: PGD
    in other norms, (ε, k, accuracy) by name.
    """

    path: Path
    record: Mapping[str, Any]
    checkpoint: str
    epoch: int | None
    split: str
    n: int
    clean: Accuracy
    robust: Accuracy
    eight_bit: Accuracy
    steps: Mapping[int, Accuracy]
    eps: tuple[tuple[float, int, Accuracy], ...]
    attacks: tuple[AttackFigures, ...]
    norms: Mapping[str, tuple[float, int, Accuracy]]

    @property
    def strongest(self) -> int | None:
        """The largest number of PGD steps in the sweep; None without one."""
        return max(self.steps, default=None)

    @property
    def attack(self) -> Mapping[str, Any]:
        return dict(self.record["attack"])

    @property
    def threat(self) -> tuple[str, float]:
        """Norm and ε of the main attacks."""
        return str(self.record["threat"]["norm"]), float(self.record["threat"]["eps"])

    @property
    def name(self) -> str:
        """Name among the evaluations of the same checkpoint; records of earlier versions have none."""
        return str(self.record.get("name", ""))

    @property
    def of(self) -> int:
        """How many images the split has; n in records of earlier versions."""
        return int(self.record.get("of") or self.n)

    @property
    def headline(self) -> Accuracy | None:
        """The worst case; None for a network with random outputs that was attacked without EOT."""
        return None if robustness_unknown(self.record) else self.robust

    @property
    def basis(self) -> str:
        """What `robust` is the worst case of, on one line."""
        return attack_basis(self.record)

    @property
    def bound(self) -> str:
        return str(self.record["bound"])

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.record.get("warnings", ()))

    @property
    def audit(self) -> Mapping[str, Any]:
        """`trusted`, `flags`, `sentence` and the `checks`; no checks if the evaluation was not audited."""
        return dict(self.record["audit"])

    @property
    def settings(self) -> dict[str, object]:
        """All that the accuracies depend on besides network, data and seed, flat."""
        norm, eps = self.threat
        settings: dict[str, object] = {"split": self.split, "n": self.n, "norm": norm, "eps": eps}
        if self.steps:
            settings |= {key: value for key, value in self.attack.items() if key not in ("seed", "norm", "eps", "name")}
            settings["steps"] = sorted(self.steps)
        settings["attacks"] = ", ".join(attack.name for attack in self.attacks) or None
        return settings | {f"attacks.{attack.name}": attack.words for attack in self.attacks}

    @cached_property
    def outcomes(self) -> dict[str, Array] | None:
        """The per-example arrays beside the record; None where the file is gone."""
        path = self.path.with_name(self.record["outcomes"])
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as fault:
            raise DataError("outcomes", path, f"cannot be read ({fault})", "evaluate the checkpoint again") from fault


def attack_names(record: Mapping[str, Any]) -> list[str]:
    """The attacks behind the worst case by their common names: `PGD-100`, `AutoAttack (standard)`, `spsa`."""
    names = [str(attack["name"]) for attack in record["attacks"]]
    if is_autoattack(record):
        first = min(names.index(name) for name in STANDARD)
        names = [AUTOATTACK if at == first else name for at, name in enumerate(names)]
        names = [name for name in names if name not in STANDARD]
    if not record["steps"]:
        return names
    threat = record["plan"]["threat"]
    restarts = f" with {threat['restarts']} restarts" if threat["restarts"] > 1 else ""
    return [f"PGD-{threat['steps']}{restarts}", *names]


def attack_basis(record: Mapping[str, Any]) -> str:
    """`PGD-100`, or `the worst case per example of PGD-100, spsa`."""
    names = attack_names(record)
    if len(names) < 2:
        return "".join(names) or "no attack"
    return f"the worst case per example of {', '.join(names)}"


def bound_text(record: Mapping[str, Any]) -> str:
    """The kind of bound that the worst case is: `upper bound: PGD-100 only`."""
    alone = len(record["robust"]["attacks"]) == 1
    return f"{record['bound']} bound: {attack_basis(record)}{' only' if alone else ''}"


def is_autoattack(record: Mapping[str, Any]) -> bool:
    """Whether the record holds AutoAttack, version standard: its four attacks in sequence, with no less effort than the
    authors' (fewer targets where there are fewer classes).
    """
    settings = {attack["name"]: attack["settings"] for attack in record["attacks"]}
    if not record["plan"]["sequential"] or not set(STANDARD) <= set(settings):
        return False
    for name, least in STANDARD.items():
        used = settings[name]
        if not str(used.get("_target_", "")).startswith("atbench.attacks."):
            return False  # another attack of the same name
        least = least | (STANDARD_L1.get(name, {}) if used.get("norm") == "l1" else {})
        # null is the attack's default, which is the authors'.
        if any(key not in used or (used[key] is not None and used[key] < least[key]) for key in least):
            return False
    return True


def is_random(record: Mapping[str, Any]) -> bool:
    """Whether the network's outputs are random, by the audit or by the evaluation itself."""
    return bool(record.get("random")) or "randomness" in record["audit"]["flags"]


def robustness_unknown(record: Mapping[str, Any]) -> bool:
    """Whether the network's outputs are random and it was attacked without EOT."""
    return is_random(record) and not uses_eot(record)


def uses_eot(record: Mapping[str, Any]) -> bool:
    """Whether the record holds AutoAttack, version rand, with at least its authors' number of passes averaged (EOT)."""
    samples = {attack["name"]: attack["settings"].get("eot_samples") or 1 for attack in record["attacks"]}
    return all(samples.get(name, 1) >= RAND[name] for name in RAND)


def read_evaluation(path: Path) -> EvaluationRecord:
    """One evaluation record. Raises DataError for another schema or a missing key."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise DataError("file", path, f"not JSON ({fault})", "restore it from a copy, or evaluate again") from fault
    record = renamed_record(record) if isinstance(record, dict) else record
    known = record.get("schema") if isinstance(record, dict) else None
    if known is not None and known != SCHEMA:
        again = f"run `atbench eval {path.parent.parent}` again"
        raise DataError("evaluation", path, f"a record of schema {known}, this version reads {SCHEMA}", again)
    try:
        return EvaluationRecord(
            path=path,
            record=record,
            checkpoint=str(record["checkpoint"]),
            epoch=None if record["epoch"] is None else int(record["epoch"]),
            split=str(record["split"]),
            n=int(record["n"]),
            clean=_accuracy(record["clean"]),
            robust=_accuracy(record["robust"]),
            eight_bit=_accuracy(record["robust"]["eight_bit"]),
            steps={int(entry["k"]): _accuracy(entry) for entry in record["steps"]},
            eps=tuple((float(entry["eps"]), int(entry["k"]), _accuracy(entry)) for entry in record["eps"]),
            attacks=tuple(_attack_figures(entry) for entry in record["attacks"]),
            norms={
                name: (float(entry["eps"]), int(entry["k"]), _accuracy(entry))
                for name, entry in record["norms"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise DataError("evaluation", path, f"not an evaluation record ({fault!r})", "evaluate again") from fault


def _attack_figures(entry: Mapping[str, Any]) -> AttackFigures:
    plain = ("name", "access", "settings", "tried", "broken", "broken_eight_bit", "seconds", "forwards", "gradients")
    alone = None if entry["alone"] is None else _accuracy(entry["alone"])
    given = {key: entry[key] for key in plain}
    return AttackFigures(**given, alone=alone, after=_accuracy(entry["after"]), distance=entry.get("distance"))


def _accuracy(entry: Mapping[str, Any]) -> Accuracy:
    return Accuracy(float(entry["accuracy"]), float(entry["low"]), float(entry["high"]))
