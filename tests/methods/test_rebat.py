"""ReBAT: when its average begins, what it pulls towards, and the stronger attack."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.data import TrainData
from atbench.methods.base import FixedSteps
from atbench.methods.early_stop import EarlyStop
from atbench.methods.rebat import Rebat
from tests.support import reference, worlds


def make(given: TrainData, norm: str = "batch", **options: Any) -> Rebat:
    settings = {"start": 0.5, "strong_start": 0.25, "decay": 0.9, **options}
    method = Rebat(worlds.cnn(norm=norm), worlds.attack(bn="train"), **settings)
    worlds.start(method, given)
    return method


def at(method: Rebat, epoch: int) -> Rebat:
    method.clock.epoch, method.clock.step = epoch, 0
    return method


def apart(method: Rebat) -> Rebat:
    """With an average that is another network."""
    method.average.network.load_state_dict(worlds.cnn(norm="none", seed=7).state_dict())
    return method


def test_before_its_start_it_is_rices_pgd_at_to_the_bit_and_the_average_a_copy() -> None:
    given = worlds.data()
    method, plain = make(given, beta=5.0), EarlyStop(worlds.cnn(norm="batch"), worlds.attack(bn="train"))
    half = 2 * given.steps
    assert worlds.steps(method, given, half) == worlds.steps(plain, given, half)
    assert worlds.same(method.model.state_dict(), plain.model.state_dict())
    assert worlds.same(method.evaluated().state_dict(), method.model.state_dict()), "running statistics too"
    before = {name: value.clone() for name, value in method.evaluated().state_dict().items()}
    worlds.steps(method, given, 1, first=half)
    for name, value in method.model.state_dict().items():
        if value.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * value
            torch.testing.assert_close(method.evaluated().state_dict()[name], expected, rtol=0, atol=1e-14)


def test_without_beta_it_trains_as_pgd_at_does() -> None:
    given = worlds.data()
    method, plain = make(given, beta=0.0), EarlyStop(worlds.cnn(norm="batch"), worlds.attack(bn="train"))
    assert worlds.steps(method, given, 12) == worlds.steps(plain, given, 12)
    assert method.forward_cost(10) == plain.forward_cost(10) == 24


def test_loss_is_the_formula_from_the_average_to_the_model() -> None:
    given = worlds.data()
    method = at(apart(make(given, norm="none", beta=2.0)), 2)
    batch = method.perturb(given.batch(0, 0))
    logits, taught = method.model(batch.x_adv), worlds.cnn(norm="none", seed=7)(batch.x_adv)
    ce, kl = reference.mean(reference.ce(logits, batch.y)), reference.mean(reference.kl(taught, logits))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + 2 * kl, abs=1e-12) and kl > 1e-3
    assert loss.terms["kl"].item() == pytest.approx(kl, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)
    assert method.forward_cost(10) == 25


def test_who_equals_the_average_is_not_pulled() -> None:
    given = worlds.data()
    method = at(make(given, norm="none", beta=1e6), 2)
    assert abs(method.loss(method.perturb(given.batch(0, 0))).terms["kl"].item()) < 1e-15


def test_the_average_answers_in_eval_mode() -> None:
    given = worlds.data()
    method = make(given)
    worlds.steps(method, given, 2 * given.steps)
    batch = at(method, 2).perturb(given.batch(0, 0))
    copy = worlds.cnn(norm="batch")
    copy.load_state_dict(method.evaluated().state_dict())
    torch.testing.assert_close(batch.aux["p"], copy.eval()(batch.x_adv).softmax(dim=1), rtol=0, atol=1e-12)
    assert not batch.aux["p"].requires_grad


@pytest.mark.parametrize(("epoch", "eps", "steps"), [(0, 0.1, 3), (1, 0.2, 7)])
def test_the_attack_is_stronger_from_its_share_on(epoch: int, eps: float, steps: int) -> None:
    given = worlds.data(worlds.source(inset=0.3))
    method = at(make(given, norm="none", strong_eps=0.2, strong_steps=7), epoch)
    seen: list[int] = []
    method.model.register_forward_pre_hook(lambda *_: seen.append(1))
    batch = method.perturb(given.batch(0, 0))
    assert len(seen) == steps and (batch.x_adv - batch.x).abs().max().item() == pytest.approx(eps)
    assert method.forward_cost(3) == 2 * steps + 4
    assert method.fixed_steps() == {
        "attack": FixedSteps(3, 0.04, 0.1),
        "method.strong_steps": FixedSteps(7, 0.04, 0.2),
    }


def test_contract() -> None:
    given = worlds.data()
    method = at(apart(make(given, norm="none")), 2)
    worlds.check_pure(method, given.batch(0, 0))
    worlds.check_resume(lambda: make(given), given, count=12)
