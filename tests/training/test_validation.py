"""Selection under several norms: what holds under all of them, and the epoch in which most does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.errors import ConfigError
from atbench.evaluation import EvalModel, PGDConfig, broken_at, robust_after
from atbench.training import World
from atbench.training.validation import Validation, class_accuracies
from atbench.workflows.pgd_configs import selection_attacks
from tests.support import worlds
from tests.support.configs import resolved
from tests.support.contract import Log, trainer_of

ALONE = World(torch.device("cpu"))
THREATS = (PGDConfig("linf", 0.02, 0.01, 4), PGDConfig("l2", 0.3, 0.1, 4), PGDConfig("l1", 1.0, 1 / 3, 4))


def test_union_is_what_holds_under_every_threat() -> None:
    given, network = worlds.data(worlds.source(validation=40, n=120)), worlds.cnn()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for step in range(40):
        batch = given.batch(*divmod(step, given.steps))
        torch.nn.functional.cross_entropy(network(batch.x), batch.y).backward()
        optimizer.step()
        optimizer.zero_grad()
    own, *others = THREATS
    figures = Validation(given, own, 40, ALONE, others).figures(network)
    eval_model = EvalModel(network, 512)
    held = given.validation
    clean = eval_model.correct(held)
    masks = [robust_after(broken_at(eval_model, held, threat, clean), threat.steps) for threat in THREATS]
    union = float(torch.stack(masks).all(dim=0).double().mean())
    assert figures["val"]["union"] == pytest.approx(union, abs=1e-12)
    assert figures["val"]["pgd"] == pytest.approx(float(masks[0].double().mean()), abs=1e-12)
    assert 0 < union < min(float(mask.double().mean()) for mask in masks), "no norm alone has all that break"
    plain = Validation(given, own, 40, ALONE).figures(network)
    assert "union" not in plain["val"] and plain["fit"] == figures["fit"] and plain["gap"] == figures["gap"]


def test_the_best_epoch_is_the_best_in_all_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([(0.9, 0.2), (0.5, 0.4), (0.7, 0.3)])

    def figures(self: Validation, network: torch.nn.Module) -> dict[str, Any]:
        pgd, union = next(rows)
        return {"val": {"clean": 1.0, "pgd": pgd, "union": union, "k": 2, "n": 16}, "fit": {}, "gap": 0.0}

    monkeypatch.setattr(Validation, "figures", figures)
    log = Log()
    trainer = trainer_of("standard", ALONE, log, "train.epochs=3", "train.selection.norms=[l2]")
    trainer.fit()
    assert [row["best"] for row in log.rows] == [True, True, False]
    assert (trainer.best["score"], trainer.best["epoch"]) == (0.4, 2)


def test_threats_of_a_selection() -> None:
    cfg = resolved("method=pgd_at", "attack.eps=0.1", "train.selection.norms=[l1,linf,l2]", "train.selection.steps=7")
    found = selection_attacks(cfg)
    assert [(threat.norm, threat.eps, threat.steps) for threat in found] == [
        ("linf", 0.1, 7),
        ("l1", 4.0, 7),
        ("l2", 1.0, 7),
    ]
    assert len(selection_attacks(resolved("method=pgd_at"))) == 1
    for name in ("msd", "multi_norm_avg", "multi_norm_max"):
        assert [threat.norm for threat in selection_attacks(resolved(f"method={name}"))] == ["linf", "l2", "l1"]
    with pytest.raises(ConfigError, match=r"train\.selection\.norms.*l3"):
        selection_attacks(resolved("train.selection.norms=[l3]"))


def test_the_worst_class_is_the_lowest_of_their_shares() -> None:
    y = torch.tensor([4, 0, 0, 4, 4, 1])
    right = torch.tensor([True, True, False, False, True, True])
    assert class_accuracies(right, y) == [0.5, 1.0, pytest.approx(2 / 3)]
    given, network = worlds.data(worlds.source(validation=40, n=120)), worlds.cnn()
    validation = Validation(given, THREATS[0], 40, ALONE)
    eval_model = EvalModel(network, 512)
    held = robust_after(broken_at(eval_model, given.validation, THREATS[0], eval_model.correct(given.validation)), 4)
    shares = [float(held[given.validation.y == k].double().mean()) for k in range(3)]
    assert validation.worst_class(network) == validation.figures(network)["val"]["worst_class"] == min(shares)
    assert min(shares) < max(shares)
