"""What `scripts/repro.py` can run, by tier: the survey's Table 1, any other method, FastAT's table, the ladder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atbench.config.registry import benchmark, conf_dir, options
from atbench.errors import ConfigError, hint, refuse_unknown
from atbench.reporting.reproduction import TIERS
from atbench.reporting.table1 import survey_rows

#: Tables of their own, in folders of their own below `results/<tier>/`.
TABLES = ("table1", "fastat", "ladder")


@dataclass(frozen=True)
class Tier:
    """How a tier judges.

    images, autoattack_images: how many of the test split PGD and AutoAttack run on, None for all. autoattack_seeds: how
    many of the seeds AutoAttack runs on, None for all. most_steps: of PGD, whatever the paper has.
    """

    seeds: tuple[int, ...]
    checkpoint: str
    images: int | None = None
    autoattack_images: int | None = None
    autoattack_seeds: int | None = None
    most_steps: int | None = None


#: `smoke` shows the last checkpoint, as docs/cpu.md does: overfitting is not selected away.
HOW: Mapping[str, Tier] = {
    "smoke": Tier((0, 1), "last", images=5000, autoattack_images=500, autoattack_seeds=1, most_steps=20),
    "short": Tier((0,), "best", most_steps=100),
    "paper": Tier((0,), "best"),
}

#: The ladder is judged by differences between rungs, which need seeds of their own in every tier.
LADDER_SEEDS = (0, 1, 2)
#: In `smoke` a radius at which best and last checkpoint of one-step training differ, with a quarter of it as step.
LADDER_SETTING: Mapping[str, tuple[str, ...]] = {
    "smoke": ("tier=smoke", "dataset.threat.linf.eps=0.25", "dataset.threat.linf.step_size=0.0625"),
    "short": ("tier=short",),
    "paper": ("dataset=cifar10", "model=preactresnet18"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    words: of its training, without seed and paths. steps: of its paper's PGD. checkpoint: the one that is judged, None
    for the tier's. training: rows with the same name share the run. table: the folder of its JSON, "" for none.
    """

    key: str
    words: tuple[str, ...]
    steps: int = 20
    checkpoint: str | None = None
    training: str = ""
    table: str = ""
    peer: Mapping[str, Any] | None = None

    @property
    def home(self) -> Path:
        """Where its runs lie, below those of the tier."""
        return Path(self.table) / (self.training or self.key)


def rows_of(what: str, tier: str) -> list[Row]:
    """The rows of a table, or the one of a key of Table 1 or of a method. Raises ConfigError where there is none."""
    refuse_unknown("tier", tier, TIERS, "tier")
    survey = table1(tier)
    methods = options("method", [conf_dir()])
    if what in TABLES:
        return {"table1": list(survey.values()), "fastat": fastat(tier), "ladder": ladder(tier)}[what]
    if what in survey:
        return [survey[what]]
    if what in methods:
        return [Row(what, _method_words(what, tier))]
    raise ConfigError("repro", what, "there is no such table, row or method", hint(what, {*TABLES, *survey, *methods}))


def seeds_of(what: str, tier: str) -> tuple[int, ...]:
    """The seeds of a table or row where nobody names others."""
    return LADDER_SEEDS if what == "ladder" else HOW[tier].seeds


def table1(tier: str) -> dict[str, Row]:
    """The survey's Table 1, by key. PGD has the steps of the survey's cell, 20 where that is another attack."""
    rows = {}
    for row in survey_rows():
        pgd = re.fullmatch(r"PGD(\d+)", str(row.survey["attack"]))
        steps = int(pgd[1]) if pgd else 20
        rows[row.key] = Row(row.key, (f"experiment=table1/{row.key}", f"tier={tier}"), steps)
    return rows


def fastat(tier: str) -> list[Row]:
    """The FastAT Benchmark's table: its own setting in `paper`, else its methods in the tier's."""
    rows = []
    for key, given in benchmark("fastat").items():
        words: tuple[str, ...] = (f"experiment=fastat/{key}",)
        if tier != "paper":
            own = [word for word in given.get("words", ()) if not word.startswith("train.")]  # of its recipe
            words = (f"tier={tier}", f"method={given['method']}", *own)
            words += ("plus=[ema]",) if given.get("averaged", True) else ()
        mean, std = given["autoattack"]
        peer = {"accuracy": mean, "std": std, "attack": "AutoAttack", "of": "FastAT Benchmark", "tier": "paper"}
        rows.append(Row(key, words, 50, given.get("checkpoint", "best"), table="fastat", peer=peer))
    return rows


def ladder(tier: str) -> list[Row]:
    """The recipe ladder: PGD-AT and TRADES on each rung of conf/recipe/ladder, which adds to the one before. The first
    two are the last and the best checkpoint of one training.
    """
    rows = []
    for method in ("pgd_at", "trades"):
        setting = (*LADDER_SETTING[tier], f"method={method}")
        raw = {"recipe=ladder/raw": f"{method}-raw"}
        for rung in rungs(tier):
            words = (f"recipe=ladder/{'raw' if rung.startswith('raw') else rung}",)
            if rung == "silu" and tier == "smoke":
                words = ("recipe=ladder/awp", "model.activation=silu")
            key, checkpoint = f"{method}-{rung}", "last" if rung == "raw_last" else "best"
            training = raw.get(words[0], key)
            rows.append(Row(key, (*setting, *words), checkpoint=checkpoint, table="ladder", training=training))
    return rows


def rungs(tier: str) -> tuple[str, ...]:
    """The rungs from below. Digits have none of IDBH: mirrored and sheared they are other digits."""
    every = ("raw_last", "raw_best", "ema", "label_smoothing", "awp", "idbh", "silu")
    return tuple(rung for rung in every if (tier, rung) != ("smoke", "idbh"))


def _method_words(method: str, tier: str) -> tuple[str, ...]:
    """The training of a method without a row. Raises ConfigError in `paper` where its authors' setting is not known."""
    if tier != "paper":
        return (f"tier={tier}", f"method={method}")
    if (name := f"paper/{method}") not in options("experiment", [conf_dir()]):
        raise ConfigError("tier", tier, f"there is no experiment={name}", "use tier smoke or short")
    return (f"experiment={name}",)
