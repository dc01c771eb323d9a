"""Attacks on data sets with fewer classes than they need: AutoAttack adapts, other attacks are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atbench.attacks import Attack
from atbench.attacks.gradient.apgd import APGD, TargetedAPGD
from atbench.errors import ConfigError

Attacks = Mapping[str, tuple[Attack, Mapping[str, Any]]]


def adapt_attacks(
    attacks: Attacks, classes: int, adapt: bool
) -> tuple[dict[str, tuple[Attack, Mapping[str, Any]]], list[str]]:
    """The attacks that are defined for so many classes, and a warning for each that is not.

    `adapt`: AutoAttack is asked for, and runs without the losses that are not defined. Its authors' code says which
    (fra31/auto-attack, checks.py, check_n_classes: two classes have no DLR, three no targeted DLR), and leaves the rest
    to its users. Here APGD-DLR stands in for APGD-T at three classes, and both are left out at two; APGD-CE, FAB-T with
    one target a wrong class, and Square remain. Raises ConfigError for any other attack.
    """
    fit: dict[str, tuple[Attack, Mapping[str, Any]]] = {}
    warnings = []
    for name, (attack, settings) in attacks.items():
        if attack.least_classes <= classes:
            fit[name] = (attack, settings)
            continue
        why = f"needs {attack.least_classes} classes, got {classes}"
        if not (adapt and isinstance(attack, APGD)):
            raise ConfigError(f"eval.attacks.{name}", type(attack).__name__, why, f"leave it out: ~eval.attacks.{name}")
        instead = "apgd_dlr"
        if classes >= 3 and isinstance(attack, TargetedAPGD) and instead not in attacks:
            fit[instead] = _untargeted(attack)
            warnings.append(f"AutoAttack: {name} {why}; {instead} stands in for it")
        else:
            warnings.append(f"AutoAttack: {name} {why}; it is left out")
    return fit, warnings


def _untargeted(attack: TargetedAPGD) -> tuple[APGD, dict[str, Any]]:
    settings: dict[str, Any] = {name: getattr(attack, name) for name in ("steps", "restarts", "rho", "eot_samples")}
    settings["objective"] = "dlr"
    return APGD(attack.norm, attack.eps, **settings), {"_target_": "atbench.attacks.gradient.apgd.APGD", **settings}
