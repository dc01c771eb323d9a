"""ALP: half clean, half adversarial in one forward, the two logits held together, four kinds of adversary."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import Objective
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.alp import TARGETS, Alp
from atbench.methods.base import Loss, Method
from atbench.methods.pgd_at import PgdAt
from atbench.training.cost import Count
from tests.support import reference, worlds


def make(network: nn.Module | None = None, *, weight: float = 0.5, target: str = "label", **changes: Any) -> Alp:
    method = Alp(network or worlds.cnn(), worlds.attack(**changes), weight, target)
    given = worlds.data()
    method.setup(given)
    worlds.start(method, given)
    return method


def first() -> Batch:
    return worlds.data().batch(0, 0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_loss_is_the_formula(weight: float) -> None:
    method = make(weight=weight)
    batch = method.perturb(first())
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce = reference.mean(reference.ce(clean, batch.y) + reference.ce(adversarial, batch.y))
    numbers = zip(clean.flatten().tolist(), adversarial.flatten().tolist(), strict=True)
    squares = [(a - b) ** 2 for a, b in numbers]  # 12 images × 3 classes: the mean is over classes too
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + weight * reference.mean(squares), abs=1e-12)
    assert loss.terms["pairing"].item() == pytest.approx(reference.mean(squares), abs=1e-14)
    assert loss.terms["pairing"] > 0
    both = torch.cat([clean, adversarial]).argmax(dim=1) == batch.y.repeat(2)
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        both.double().mean().item()
    )


def test_gradient_flows_through_both_logits() -> None:
    method = make(weight=5.0)
    batch = method.perturb(first())
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_clean_and_adversarial_images_share_one_batch_statistic() -> None:
    method = make(worlds.cnn(norm="batch"))
    twin = copy.deepcopy(method.model)
    batch = method.perturb(first())
    logits = twin(torch.cat([batch.x, batch.x_adv]))
    expected = F.cross_entropy(logits, batch.y.repeat(2)) + 0.5 * (logits[:12] - logits[12:]).square().mean()
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-12)
    assert worlds.same(dict(method.model.state_dict()), dict(twin.state_dict())), "statistics move once"


class Mixed(Method):
    """Mixed-minibatch PGD, half and half."""

    def loss(self, batch: Batch) -> Loss:
        return Loss(F.cross_entropy(self.model(torch.cat([batch.x, batch.x_adv])), batch.y.repeat(2)), {})


def test_without_pairing_it_is_mixed_minibatch_pgd_to_the_bit() -> None:
    alp, mixed = make(weight=0.0), Mixed(worlds.cnn(), worlds.attack())
    worlds.steps(alp, worlds.data(), 8)
    worlds.steps(mixed, worlds.data(), 8)
    assert worlds.same(worlds.snapshot(alp), worlds.snapshot(mixed))


def test_without_a_radius_nothing_is_paired() -> None:
    method = make(eps=0.0)
    assert method.loss(method.perturb(first())).terms["pairing"] == 0


def untrained_predictions(method: Alp, x: Tensor) -> Tensor:
    return method.model.eval()(x).detach()


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_is_its_own_search(target: str) -> None:
    network = worlds.linear()
    method, batch = make(network, target=target), first()
    logits = untrained_predictions(method, batch.x)
    assert 0 < int((logits.argmax(dim=1) == batch.y).sum()) < len(batch), "right on some images and wrong on others"
    found = method.perturb(batch).x_adv
    assert worlds.legal(method.attack, batch.x, found, 0.1)
    by_label = PgdAt(network, worlds.attack()).perturb(batch).x_adv
    if target == "label":
        assert torch.equal(found, by_label)
        return
    assert not torch.equal(found, by_label)
    if target == "predicted":
        other = Batch(batch.x, logits.argmax(dim=1), batch.index)
        assert torch.equal(found, PgdAt(network, worlds.attack()).perturb(other).x_adv)
    if target == "least_likely":
        t = logits.argmin(dim=1)
        search = Objective(network, lambda z, t: z.log_softmax(dim=1)[torch.arange(len(z)), t], t)
        expected = PgdAt(network, worlds.attack()).run_attack(search, batch.x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        pulled = untrained_predictions(method, found).log_softmax(dim=1) - logits.log_softmax(dim=1)
        assert (pulled.gather(1, t[:, None]) > 0).all()


def test_the_target_is_chosen_in_the_mode_of_the_attack() -> None:
    """Running statistics, and none of them moves."""
    method, batch = make(worlds.cnn(norm="batch"), target="least_likely", steps=1, step_size=1.0, start="zero"), first()
    worlds.steps(method, worlds.data(), 3)
    before = worlds.snapshot(method)
    found = method.perturb(batch).x_adv
    assert worlds.same(before, worlds.snapshot(method))
    x = batch.x.clone().requires_grad_()
    logits = method.model.eval()(x)
    (grad,) = torch.autograd.grad(-F.cross_entropy(logits, logits.argmin(dim=1), reduction="sum"), x)
    assert torch.equal(found, (batch.x + 0.1 * grad.sign()).clamp(0, 1))


def test_random_classes_are_uniform_and_differ_from_step_to_step() -> None:
    method, batch = make(target="random"), first()
    drawn = []
    for step in range(100):
        method.clock.step = step
        drawn.append(method._objective(batch).args)
    counts = torch.cat(drawn).bincount(minlength=3)
    assert len(counts) == 3 and counts.min() > 340 and counts.max() < 460, "400 each of 1,200"
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("target", TARGETS)
def test_perturb_and_loss_repeat_and_processes_share_them(target: str) -> None:
    worlds.check_pure(make(target=target), first())

    def fresh(given: TrainData) -> Alp:
        method = Alp(worlds.cnn(), worlds.attack(), target=target)
        method.setup(given)
        return method

    worlds.check_ranks(fresh)


def test_shares_of_classes_may_stand_for_labels() -> None:
    method = make()
    batch = method.perturb(first())
    soft = Batch(batch.x, F.one_hot(batch.y, 3).double(), batch.index, x_adv=batch.x_adv)
    torch.testing.assert_close(method.loss(soft).total, method.loss(batch).total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_only_a_predicted_target_costs_a_pass(target: str) -> None:
    method, batch = make(worlds.cnn(width=16), target=target, steps=10), first()
    with Count() as pass_, torch.no_grad():
        method.model(batch.x)
    with Count() as count:
        method.loss(method.perturb(batch)).total.backward()
    floor = method.forward_cost(10)
    assert floor == (27 if target in ("predicted", "least_likely") else 26)
    assert count.total / pass_.total == pytest.approx(floor, abs=0.7)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.target.*least_likely"):
        make(target="likely")
