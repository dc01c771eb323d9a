"""Broken defences are found out, each by the check that names its fault; honest networks are not accused."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from torch import nn

import atbench
from atbench.evaluation import EvalModel, PGDConfig
from atbench.evaluation.audit.audit import run_audit
from atbench.evaluation.audit.verdicts import Check, audit_verdict
from tests.support import zoo

pytestmark = pytest.mark.slow

N = 100
LINF = PGDConfig("linf", zoo.EPS, zoo.STEP, 50)
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "standard": zoo.standard,
    "narrow": zoo.narrow,
    "pgd": zoo.pgd_trained,
    "trades": zoo.trades,
    "l2": zoo.l2_trained,
    "overfitted": zoo.overfitted,
}
BROKEN: list[tuple[type[zoo.Broken], str, set[str]]] = [
    (zoo.LoudLogits, "pgd", {"logit scale", "zero gradients", "margin"}),
    (zoo.Softmax, "pgd", {"softmax"}),
    (zoo.Quantised, "standard", {"zero gradients", "half range", "whole range", "noise"}),
    (zoo.OneHot, "standard", {"zero gradients", "softmax"}),
    (zoo.Noisy, "pgd", {"randomness"}),
    (zoo.Dropped, "pgd", {"randomness"}),
    (zoo.BatchStatistics, "standard", {"batch"}),
    (zoo.RunningStatistics, "standard", {"batch", "state"}),
    (zoo.Restless, "standard", {"state"}),
    (zoo.Purifying, "pgd", {"test-time gradients"}),
    (zoo.Misleading, "pgd", {"loss", "half range", "whole range"}),
    (zoo.Decoy, "pgd", {"stronger attacks"}),
]


@pytest.fixture(scope="module")
def trained() -> Callable[[str], nn.Module]:
    """The network of that name, trained once, when it is first asked for."""
    return cache(lambda name: MAKERS[name]())


def audited(network: nn.Module, threat: PGDConfig = LINF) -> list[Check]:
    images = zoo.images(N + 20)
    eval_model = EvalModel(network, 64)
    return run_audit(eval_model, images, eval_model.correct(images), threat, {}, N)


@pytest.mark.parametrize("name", ["standard", "narrow", "pgd"])
def test_honest_networks_get_no_flag(name: str, trained: Callable[[str], nn.Module]) -> None:
    said = audit_verdict(audited(trained(name)))
    assert said["trusted"] and not said["flags"], said["sentence"]


def test_pgd_alone_is_no_figure_for_logits_that_hardly_differ(trained: Callable[[str], nn.Module]) -> None:
    """TRADES with β = 6 on a small network: one start of PGD-50 leaves 50 %, more starts and targets 37 %."""
    assert audit_verdict(audited(trained("trades")))["flags"] == ["stronger attacks"]


@pytest.mark.parametrize("eps", [0.5, 1.0])
def test_an_honest_network_of_another_norm_gets_no_flag(eps: float, trained: Callable[[str], nn.Module]) -> None:
    said = audit_verdict(audited(trained("l2"), PGDConfig("l2", eps, eps / 4, 50)))
    assert said["trusted"] and not said["flags"], said["sentence"]


def test_fgsm_failing_where_robustness_ends_is_no_overfitting(trained: Callable[[str], nn.Module]) -> None:
    """Beyond the radius it was trained for, an honest network keeps far more under FGSM than under PGD as well."""
    checks = {check.name: check for check in audited(trained("pgd"), PGDConfig("linf", 0.25, 0.0625, 50))}
    found = checks["overfitting"]
    assert found.verdict == "pass" and found.value is not None and found.value > 0.2, found.sentence


@pytest.mark.parametrize(("kind", "base", "names"), BROKEN, ids=[kind.__name__ for kind, _, _ in BROKEN])
def test_broken_defences_are_named(
    kind: type[zoo.Broken], base: str, names: set[str], trained: Callable[[str], nn.Module]
) -> None:
    said = audit_verdict(audited(kind(deepcopy(trained(base)))))
    assert not said["trusted"]
    assert names <= set(said["flags"]), said["sentence"]


def test_catastrophic_overfitting_is_named(trained: Callable[[str], nn.Module]) -> None:
    checks = audited(trained("overfitted"))
    flags = {check.name: check for check in checks if check.verdict == "flag"}
    assert "overfitting" in flags, audit_verdict(checks)["sentence"]
    assert "catastrophic overfitting" in flags["overfitting"].sentence


@pytest.mark.parametrize(
    "words", [("method=ait",), ("method=feature_scatter",), ("method=bat", "attack.eps=0.1", "eval.eps=0.2")]
)
def test_methods_whose_pgd_figures_autoattack_takes_apart_are_noticed(words: tuple[str, ...], tmp_path: Path) -> None:
    """As docs/methods.md trains them, BAT at half of the radius that is tested, as its authors did: AutoAttack takes a
    quarter and more of what PGD-20 leaves.
    """
    training = ["dataset=digits", "model.width=16", *words, "logger=none", "threads=1", f"runs={tmp_path}"]
    evaluation = ["eval.steps=[20]", "eval.eps_grid=[1]", "eval.audit=250", "eval.limit=250", "eval.examples=false"]
    run = atbench.train([*training, *evaluation, "eval.checkpoints=[best]"])
    audit = json.loads((run / "evaluation" / "best.json").read_text())["audit"]
    assert "stronger attacks" in audit["flags"], audit["sentence"]
