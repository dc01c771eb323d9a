"""IAD: how far a teacher is trusted, what takes its place, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods import Stage
from atbench.methods.ard import Ard
from atbench.methods.iad import Iad
from tests.support import pupils, reference, worlds
from tests.support.configs import resolved

SECOND = {"robust": 0.5, "clean": 0.25, "asked": "adversarial", "weighted": True}


def make(epoch: int = 2, **options: Any) -> tuple[Iad, Batch]:
    """In epoch 2 of 4, with `begin` at a half unless it is given."""
    method, batch = pupils.make(Iad, **{"attack": {"bn": "train"}, "begin": 0.5, "beta": 0.7, **options})
    method.clock.epoch = epoch
    return method, method.perturb(batch)


def trusted(batch: Batch, beta: float = 0.7) -> list[float]:
    p = pupils.teacher()(batch.x_adv).softmax(dim=1).detach()
    return [float(p[i, label]) ** beta for i, label in enumerate(batch.y.tolist())]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_first_is_ard_and_the_students_own_answer_where_the_teacher_is_wrong(weighted: bool) -> None:
    method, batch = make(weighted=weighted)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    theirs, own = reference.kl(pupils.teacher()(batch.x), adversarial), reference.kl(clean, adversarial)
    omega = trusted(batch)
    assert max(omega) - min(omega) > 0.1
    rows = [(w if weighted else 1) * a + (1 - w) * b for w, a, b in zip(omega, theirs, own, strict=True)]
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean(rows), abs=1e-12)
    assert loss.terms["trust"].item() == pytest.approx(reference.mean(omega), abs=1e-12)
    # With the target detached the slope is another.
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_second_asks_about_the_attacked_image_and_has_a_teacher_of_clean_ones() -> None:
    method, batch = make(**SECOND)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    theirs = reference.kl(pupils.teacher()(batch.x_adv), adversarial)
    further = reference.mean(reference.kl(pupils.teacher("clean_teacher")(batch.x_adv), adversarial))
    own, ce = reference.kl(clean, adversarial), reference.mean(reference.ce(adversarial, batch.y))
    rows = [w * a + (1 - w) * b for w, a, b in zip(trusted(batch), theirs, own, strict=True)]
    expected = 0.5 * reference.mean(rows) + 0.25 * further + 0.25 * ce
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize(("options", "passes"), [({}, ["x_adv", "x"]), (SECOND, ["x_adv"])])
def test_before_it_begins_the_teacher_is_all_there_is(options: dict[str, Any], passes: list[str]) -> None:
    """IAD-I is ARD with T = 1, pass for BatchNorm included; IAD-II has no clean pass then."""
    method, batch = make(epoch=1, norm="batch", **options)
    copy = worlds.cnn(norm="batch").train()
    copy.load_state_dict(method.model.state_dict())
    loss = method.loss(batch)
    assert "trust" not in loss.terms
    for name in passes:
        copy(getattr(batch, name))
    assert worlds.same(method.model.state_dict(), copy.state_dict())
    if not options:
        plain, _ = pupils.make(Ard, norm="batch", temperature=1.0, divisor=1.0)
        plain.model.load_state_dict(copy.state_dict())
        assert torch.equal(plain.loss(batch).total, loss.total)


def test_with_full_trust_it_is_ard_to_the_bit() -> None:
    given = worlds.data()
    method, _ = pupils.make(Iad, given, attack={"bn": "train"}, beta=0.0, begin=0.0)
    plain, _ = pupils.make(Ard, given, attack={"bn": "train"}, temperature=1.0, divisor=1.0)
    assert worlds.steps(method, given, 5) == worlds.steps(plain, given, 5)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(plain))


def test_the_second_teacher_is_a_run_on_clean_images_or_a_finished_one() -> None:
    method, _ = make(**SECOND, clean_teacher=["train.epochs=3"])
    standard = {"_target_": "atbench.methods.standard.Standard"}
    stage = Stage(standard, offset=2, overrides=("train.epochs=3",), teaches="clean")
    assert method.pretraining()["clean_teacher"] == stage
    method, _ = make(**SECOND, clean_teacher="runs/R")
    assert method.pretraining()["clean_teacher"] == Stage(checkpoint="runs/R", teaches="clean")
    assert list(make()[0].pretraining()) == ["teacher"]


def test_weights_that_leave_less_than_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.robust \+ method\.clean: 1\.25 .*make them 1 or less"):
        make(robust=1.0, clean=0.25)


def test_the_variants_begin_where_their_authors_do() -> None:
    assert resolved("method=iad_i").method.begin == 60 / 200 and resolved("method=iad_ii").method.begin == 40 / 200
    assert (60 * 390) / (200 * 390) >= 60 / 200 > (60 * 390 - 1) / (200 * 390)
