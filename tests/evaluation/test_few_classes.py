"""Attacks and the number of classes: AutoAttack adapts to two and three, others are refused before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atbench.cli.main import main
from atbench.data import Source
from atbench.errors import ConfigError
from atbench.evaluation import Plan
from atbench.evaluation.attack_limits import evaluation_warnings
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.evaluator import evaluate_model
from atbench.training import World
from atbench.workflows.eval_plan import make_plan
from atbench.workflows.pgd_configs import make_pgd_config
from atbench.workflows.train import Run
from tests.support.configs import resolved
from tests.support.worlds import linear, source

QUICK = ("logger=none", "model.width=4", "attack.steps=1", "train.epochs=1", "train.batch_size=8", "threads=1")


def planned(origin: Source, *words: str) -> Plan:
    return make_plan(resolved("method=pgd_at", *words), origin, World(torch.device("cpu")), origin.test())


@pytest.mark.parametrize(
    ("preset", "classes", "attacks"),
    [
        ("auto", 4, ["apgd_ce", "apgd_t", "fab_t", "square"]),
        ("auto", 3, ["apgd_ce", "apgd_dlr", "fab_t", "square"]),
        ("auto", 2, ["apgd_ce", "fab_t", "square"]),
        ("auto_plus", 3, ["apgd_ce", "apgd_dlr", "fab", "square", "fab_t"]),
        ("auto_plus", 2, ["apgd_ce", "fab", "square", "fab_t"]),
        ("rand", 2, ["apgd_ce", "eot_pgd"]),
    ],
)
def test_autoattack_is_what_the_classes_allow(preset: str, classes: int, attacks: list[str]) -> None:
    plan = planned(source(classes=classes), f"eval={preset}")
    assert list(plan.attacks) == attacks
    assert bool(plan.notes) == (classes < 4) and all(f"got {classes}" in note for note in plan.notes)
    if "apgd_dlr" in attacks and preset == "auto":
        attack, settings = plan.attacks["apgd_dlr"]
        assert attack.steps == settings["steps"] == 100 and settings["objective"] == "dlr"


@pytest.mark.parametrize("classes", [2, 3])
def test_the_record_says_so_and_the_attacks_run(classes: int) -> None:
    """On a linear network, whose margins gradients and queries find."""
    origin = source(classes=classes)
    words = ("eval=auto", "eval.limit=6", "eval.audit=6", "eval.attacks.square.steps=20", "attack.eps=0.02")
    short = [f"eval.attacks.{name}.steps=5" for name in ("apgd_ce", "apgd_t", "fab_t")]
    plan = planned(origin, *words, *short)
    found = evaluate_model(EvalModel(linear(classes=classes), 6), origin.test(), plan)
    assert [attack["name"] for attack in found.facts["attacks"]] == list(plan.attacks)
    assert f"apgd_t needs 4 classes, got {classes}" in "; ".join(evaluation_warnings(found))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+attack@eval.attacks.pgd_dlr=pgd_dlr"], r"eval\.attacks\.pgd_dlr: Pgd — needs 3 classes, got 2"),
        (["+attack@eval.attacks.apgd_t=apgd_t"], r"eval\.attacks\.apgd_t: TargetedAPGD — needs 4 classes"),
        (
            ["+attack@eval.attacks.odi=odi", "eval.attacks.odi.objective=dlr"],
            r"odi: ODI — needs 3 classes",
        ),
        (
            ["+attack@eval.attacks.t=multi_targeted", "eval.attacks.t.objective=dlr"],
            r"\.t: .*needs 4",
        ),
        (["eval.objective=dlr"], r"eval\.objective: dlr — needs 3 classes, and synthetic has 2"),
    ],
)
def test_other_attacks_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(source(classes=2), *words)


def test_the_refusal_comes_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "two").mkdir()
    image = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "two" / "train.npz", image=image, label=np.arange(40) % 2)
    words = ["dataset=npz", "dataset.source.path=two", "method=standard", "+attack@eval.attacks.dlr=pgd_dlr"]
    monkeypatch.setattr(Run, "fit", lambda *_: pytest.fail("it trained"))
    assert main(["train", *QUICK, *words]) == 2
    assert "needs 3 classes, got 2" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["attack.eps=0"],
        ["eval.eps=0"],
        ["dataset.threat.linf.eps=0"],
        ["eval.eps=0", "eval=auto"],
        ["eval.norm=l2", "eval.eps=0"],
    ],
)
def test_a_radius_of_nothing_leaves_clean_accuracy(words: list[str]) -> None:
    origin = source(classes=4)
    plan = planned(origin, "eval=paper", "eval.limit=8", "eval.audit=8", *words)
    found = evaluate_model(EvalModel(linear(classes=4), 8), origin.test(), plan)
    assert plan.threat.eps == 0 and np.array_equal(found.robust, found.clean) and found.clean.any()


def test_a_search_of_the_training_side_at_no_radius_keeps_its_step() -> None:
    cfg = resolved("attack.eps=0")
    assert make_pgd_config(cfg, 5, eps=0.1).step_size == pytest.approx(0.025), "the data set's ratio"
