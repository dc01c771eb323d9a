"""The recipe ladder: conf/recipe/ladder, its rows in scripts/repro_rows.py, and its table in docs/reproduction.md."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from atbench.config import values
from scripts import ladder_table, repro_rows
from tests.support.configs import resolved
from tests.support.repro_program import Program, make


def test_rungs_that_share_a_training_train_once(tmp_path: Path, program: Program) -> None:
    assert make(tmp_path, "ladder", "--seeds", "0") == 0
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results/smoke/ladder").iterdir()}
    assert len(rows) == 12 and program.verbs().count("train") == 10 and program.verbs().count("eval") == 12
    ends = {key: rows[f"pgd_at-{key}"]["seeds"][0]["selected"] for key in ("raw_last", "raw_best", "ema")}
    assert ends == {"raw_last": "last", "raw_best": "best", "ema": "best"}
    for row in rows.values():
        checkpoints = row["seeds"][0]["checkpoints"]
        assert checkpoints["best"] > checkpoints["last"] > 0
    (said,) = [row["command"][0] for key, row in rows.items() if key == "trades-silu"]
    assert {"method=trades", "recipe=ladder/awp", "model.activation=silu"} < {*said.split()}


def test_a_rung_adds_one_thing_to_the_one_before() -> None:
    assert repro_rows.seeds_of("ladder", "smoke") == (0, 1, 2) and repro_rows.seeds_of("trades", "smoke") == (0, 1)
    for tier, count in (("smoke", 6), ("short", 7), ("paper", 7)):
        rows = repro_rows.ladder(tier)
        assert len(rows) == 2 * count
        nodes = [resolved(*row.words) for row in rows[:count]]
        assert nodes[0] == nodes[1]
        for before, after in itertools.pairwise(nodes[1:]):
            assert {*before.plus} <= {*after.plus}
            assert changed(values.plain(before), values.plain(after)) in RUNGS
    first = resolved(*repro_rows.ladder("smoke")[0].words)
    assert first.attack.eps == 0.25 and first.attack.step_size == 0.0625 and first.dataset.about.name == "mnist14"


#: What a rung may change of the one before.
RUNGS = (
    {"plus.ema"},
    {"plus.label_smoothing", "train.label_smoothing"},
    {"plus.awp"},
    {"plus.idbh", "dataset.augment", "dataset.erase"},
    {"model.activation"},
)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The keys, two deep, that differ between two configurations, without what they only say of themselves."""
    return {
        f"{part}.{key}"
        for part in ("dataset", "model", "attack", "method", "train", "plus", "eval")
        for key in {*before[part], *after[part]}
        if before[part].get(key) != after[part].get(key)
    }


def test_the_ladder_s_table_pairs_the_seeds(tmp_path: Path, program: Program) -> None:
    """Differences of 1, 2 and 6 points: mean 3, and half the interval 4.303 · 2.646 / √3."""
    assert make(tmp_path, "ladder") == 0
    for key, moved in (("ema", (0.01, 0.02, 0.06)), ("raw_best", (0.0, 0.0, 0.0))):
        path = tmp_path / f"results/smoke/ladder/pgd_at-{key}.json"
        row = json.loads(path.read_text())
        for seed, by in zip(row["seeds"], moved, strict=True):
            seed["pgd"]["accuracy"] = 0.5 + by
            seed["checkpoints"] = {"best": 0.5, "last": 0.48}
        path.write_text(json.dumps(row))
    text = ladder_table.section(tmp_path / "results")
    (line,) = [line for line in text.splitlines() if line.startswith("| `pgd_at-ema`")]
    assert "| +3.0 [-3.6, +9.6] | +2.0 | 45 |" in line
    (first,) = [line for line in text.splitlines() if line.startswith("| `trades-raw_last`")]
    assert [cell.strip() for cell in first.split("|")][5] == "", "nothing is below it"
    assert "3 seeds; 60 test images, AutoAttack on 60 of them with 1;" in text
    assert "Not run; `make repro-ladder TIER=short`" in text
