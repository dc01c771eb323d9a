"""What a run is quoted by where it was evaluated more than once, on fewer images, or answers at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atbench.evaluation import eval_names
from atbench.reporting.headline import compute_headline, select_evaluation
from atbench.reporting.leaderboard import leaderboard_entry
from atbench.reporting.results import EvaluationRecord, read_evaluation
from tests.support.outcomes import STANDARD, Made, N, write


def made(folder: Path, record: dict[str, Any] | None = None, **options: Any) -> EvaluationRecord:
    write(folder, "best", 1, Made(**options))
    path = folder / "best.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(record or {})}))
    return read_evaluation(path)


def test_a_short_evaluation_is_no_headline(tmp_path: Path) -> None:
    full = made(tmp_path / "a", robust=0.6)
    short = made(tmp_path / "b", {"n": 20, "of": N}, robust=0.1)
    assert select_evaluation([full, short]) is full and compute_headline([full, short]).accuracy == full.robust
    assert select_evaluation([short, full]) is full, "whatever came first"


def test_the_headline_is_the_worst_case_over_all_of_the_full_n(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", robust=0.6), made(tmp_path / "b", robust=0.55, seed=4)
    assert one.outcomes and other.outcomes
    np.savez(tmp_path / "b" / "best.npz", robust=np.roll(other.outcomes["robust"], 7))
    other = read_evaluation(tmp_path / "b" / "best.json")
    assert other.outcomes
    both = float((one.outcomes["robust"] & other.outcomes["robust"]).mean())
    found = compute_headline([one, other])
    assert found.accuracy and found.accuracy.value == pytest.approx(both)
    assert both < min(one.robust.value, other.robust.value)
    assert select_evaluation([one, other]) is other and found.members == (one, other)
    wide = made(tmp_path / "c", robust=0.2, eps=0.4)
    assert compute_headline([one, other, wide]) == found, "another threat is another figure"
    again = made(tmp_path / "d", {"weights_sha256": "c" * 64}, robust=0.2)
    assert compute_headline([one, again]).accuracy == one.robust, "and so are other weights"


@pytest.mark.parametrize("said", [{"random": "torch"}, {"audit": {"flags": ["randomness"]}}])
def test_a_network_that_answers_at_random_is_quoted_by_rand_or_not_at_all(said: dict[str, Any], tmp_path: Path) -> None:
    blank = {"trusted": False, "flags": [], "sentence": "", "checks": []}
    record = {**said, "audit": {**blank, **said.get("audit", {})}}
    plain = made(tmp_path / "a", record, attacks=STANDARD, sequential=True)
    assert (
        plain.headline is None
        and compute_headline([plain]).accuracy is None
        and compute_headline([plain]).members == ()
    )
    assert (
        leaderboard_entry({}, plain.record, "x")["reported"]
        is leaderboard_entry({}, plain.record, "x")["autoattack_acc"]
        is None
    )
    attacks = {name: {"eot_samples": 20, "breaks": 2} for name in ("apgd_ce", "apgd_dlr")}
    rand = made(tmp_path / "b", record, robust=0.5, attacks=attacks, sequential=True)
    assert compute_headline([plain, rand]).accuracy == rand.robust and select_evaluation([plain, rand]) is rand
    few = made(
        tmp_path / "c", record, attacks={name: {"eot_samples": 2, "breaks": 2} for name in attacks}, sequential=True
    )
    assert compute_headline([plain, few]).accuracy is None


def config(**changes: Any) -> dict[str, Any]:
    chosen = {"about": {"name": "auto"}, "steps": [1], "limit": None, "batch_size": 5, "name": None, **changes}
    return {
        "seed": 0,
        "dataset": {},
        "model": {},
        "attack": {"norm": "linf", "eps": 0.1},
        "eval": chosen,
        "train": "ignored",
    }


def test_every_evaluation_has_a_place_of_its_own(tmp_path: Path) -> None:
    def done(where: Path, of: dict[str, Any]) -> Path:
        where.mkdir(parents=True, exist_ok=True)
        (where / "best.json").write_text("{}")
        (where / "best.yaml").write_text(json.dumps(eval_names.record_settings(of)))
        return where

    top = tmp_path / "evaluation"
    assert done(eval_names.record_dir(tmp_path, config(), "auto"), config()) == top
    assert eval_names.record_dir(tmp_path, config(batch_size=9, about={"name": "other"}), "auto") == top, (
        "the same evaluation"
    )
    assert eval_names.record_dir(tmp_path, config(members=True), "auto") == top, "a record that does not know the key"
    short = config(limit=40)
    assert done(eval_names.record_dir(tmp_path, short, "auto-n40"), short) == top / "auto-n40"
    assert eval_names.record_dir(tmp_path, config(limit=40, steps=[2]), "auto-n40") == top / "auto-n40-2"
    assert eval_names.record_dir(tmp_path, short, "anything") == top / "auto-n40"
    assert (
        eval_names.evaluation_name(short["eval"], 40, 450) == "auto-n40"
        and eval_names.evaluation_name(config()["eval"], 450, 450) == "auto"
    )
    assert eval_names.evaluation_name(config(name="mine")["eval"], 40, 450) == "mine"


def test_masks_of_another_size_do_not_mix(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", robust=0.6), made(tmp_path / "b", robust=0.5)
    np.savez(tmp_path / "b" / "best.npz", robust=np.ones(3, bool))
    assert compute_headline([one, other]).accuracy == min(one.robust, other.robust, key=lambda found: found.value)
