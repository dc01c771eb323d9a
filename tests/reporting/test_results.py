"""What a record's worst case is called, and that no number of it passes which its masks do not bear out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atbench.reporting.agreement import record_disagreements
from atbench.reporting.results import EvaluationRecord, attack_basis, bound_text, is_autoattack, read_evaluation
from tests.support.outcomes import STANDARD, Made, write

EVERYTHING = Made(
    attacks={**STANDARD, "cw": {"steps": 30, "breaks": 1}},
    sequential=True,
    norms=("l2", "l1"),
)


def made(folder: Path, given: Made) -> EvaluationRecord:
    write(folder, "best", 2, given)
    return read_evaluation(folder / "best.json")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Made(), "PGD-50"),
        (Made(restarts=10), "PGD-50 with 10 restarts"),
        (Made(steps=(), attacks={"cw": {"breaks": 1}}), "cw"),
        (Made(attacks={"cw": {"breaks": 1}}), "the worst case per example of PGD-50, cw"),
        (Made(steps=(), attacks=STANDARD, sequential=True), "AutoAttack (standard)"),
        (EVERYTHING, "the worst case per example of PGD-50, AutoAttack (standard), cw"),
        (Made(steps=()), "no attack"),
    ],
)
def test_the_worst_case_is_named_by_its_attacks(tmp_path: Path, given: Made, words: str) -> None:
    found = made(tmp_path, given)
    assert found.basis == words
    assert bound_text(found.record) in (f"upper bound: {words}", f"upper bound: {words} only")


def test_one_attack_is_called_the_only_one(tmp_path: Path) -> None:
    assert bound_text(made(tmp_path, Made()).record) == "upper bound: PGD-50 only"
    assert not bound_text(made(tmp_path, EVERYTHING).record).endswith("only")
    assert not bound_text(made(tmp_path, Made(steps=(), attacks=STANDARD, sequential=True)).record).endswith("only")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda attacks: attacks.pop("fab_t"),
        lambda attacks: attacks["apgd_t"].update(targets=3),
        lambda attacks: attacks["square"].update(steps=4999),
        lambda attacks: attacks["apgd_ce"].pop("steps"),
        lambda attacks: attacks["square"].update(_target_="mine.Square"),
        lambda attacks: attacks["apgd_ce"].update(norm="l1", restarts=1),
    ],
    ids=["three of four", "few targets", "few queries", "unknown effort", "somebody's own", "too few starts for L1"],
)
def test_less_than_autoattack_is_not_called_so(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    attacks = {name: dict(settings) for name, settings in STANDARD.items()}
    assert is_autoattack(made(tmp_path, Made(attacks=attacks, sequential=True)).record)
    spoil(attacks)
    found = made(tmp_path, Made(attacks=attacks, sequential=True))
    assert not is_autoattack(found.record) and "AutoAttack" not in attack_basis(found.record)
    assert "apgd_ce" in attack_basis(found.record)


def test_what_is_left_open_is_the_attacks_own_number_and_the_authors(tmp_path: Path) -> None:
    attacks = {name: dict(settings) for name, settings in STANDARD.items()}
    attacks["apgd_ce"]["restarts"] = attacks["apgd_t"]["targets"] = None
    assert is_autoattack(made(tmp_path, Made(attacks=attacks, sequential=True)).record)


def test_autoattack_runs_each_attack_on_survivors(tmp_path: Path) -> None:
    assert not is_autoattack(made(tmp_path, Made(attacks=STANDARD)).record)


def test_an_honest_record_agrees_with_its_masks(tmp_path: Path) -> None:
    for given in (Made(), EVERYTHING, Made(attacks=STANDARD), Made(steps=(), attacks=STANDARD)):
        assert record_disagreements(made(tmp_path, given)) == ()


def change(*path: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(record: dict[str, Any]) -> None:
        for key in path:
            record = record[key]
        record["accuracy"] = record["accuracy"] - 1 / 60

    return spoil


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (change("clean"), "clean.accuracy:"),
        (change("robust"), "robust.accuracy:"),
        (change("robust", "eight_bit"), "robust.eight_bit.accuracy:"),
        (change("steps", 2), "steps.2.accuracy:"),
        (change("eps", 1), "eps.1.accuracy:"),
        (change("attacks", 0, "alone"), "attacks.apgd_ce.alone.accuracy:"),
        (change("attacks", 1, "after"), "attacks.apgd_t.after.accuracy:"),
        (change("norms", "l2"), "norms.l2.accuracy:"),
        (change("classes", "classes", 3), "classes.classes.3.accuracy:"),
        (change("calibration", "adversarial"), "calibration.adversarial.accuracy:"),
        (lambda record: record["attacks"][2].update(broken=0), "attacks.fab_t.broken:"),
    ],
)
def test_every_accuracy_is_held_against_its_mask(tmp_path: Path, spoil: Callable[..., None], name: str) -> None:
    found = made(tmp_path, Made(attacks=STANDARD, norms=("l2",)))
    spoil(found.record)
    (tmp_path / "best.json").write_text(json.dumps(found.record))
    lines = record_disagreements(read_evaluation(tmp_path / "best.json"))
    assert any(line.startswith(name) for line in lines), lines


def replace(file: Path, **changes: np.ndarray | None) -> None:
    with np.load(file) as arrays:
        kept = {**arrays, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in kept.items() if value is not None})
    file.write_bytes(buffer.getvalue())


def test_masks_that_do_not_fit_are_called_out(tmp_path: Path) -> None:
    found = made(tmp_path, EVERYTHING)
    everyone = np.ones(60, bool)
    for changes, words in (
        ({"broken_square": None}, "does not fit the record"),
        ({"surface": np.zeros((1, 60), np.int16)}, "does not fit the record"),
        ({"clean": everyone[:7]}, "the record has 60 examples"),
        ({"tried_cw": everyone}, "cw: best.npz marks examples as broken that were not tried"),
    ):
        replace(tmp_path / "best.npz", **changes)
        assert any(words in line for line in record_disagreements(read_evaluation(tmp_path / "best.json"))), words
        write(tmp_path, "best", 2, EVERYTHING)
    assert found.outcomes is not None


def test_the_surface_is_held_against_the_curve_over_eps(tmp_path: Path) -> None:
    found = made(tmp_path, Made())
    assert found.outcomes is not None
    surface = found.outcomes["surface"].copy()
    surface[0, np.flatnonzero(surface[0] == -1)[0]] = 1
    replace(tmp_path / "best.npz", surface=surface)
    assert any(
        line.startswith("eps 0.1, k = 20:") for line in record_disagreements(read_evaluation(tmp_path / "best.json"))
    )
