"""AdaAD: an attack through both networks on their disagreement, and a lesson where it ends; AdaIAD on top."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atbench.data import Batch
from atbench.methods.adaad import Adaad, disagreement
from tests.support import pupils, reference, worlds
from tests.support.configs import resolved


def make(epoch: int = 0, **options: Any) -> tuple[Adaad, Batch]:
    method, batch = pupils.make(Adaad, attack={"start": "gaussian"}, **options)
    method.clock.epoch = epoch
    return method, batch


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_loss_is_the_formula(alpha: float) -> None:
    method, batch = make(alpha=alpha, divisor=4.0)
    batch, teacher = method.perturb(batch), pupils.teacher()
    robust, natural = (reference.mean(reference.kl(teacher(x), method.model(x))) for x in (batch.x_adv, batch.x))
    expected = (alpha * robust + (1 - alpha) * natural) / 4
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_adaiad_has_a_temperature_and_trusts_itself_from_its_beginning_on() -> None:
    options = {"temperature": 5.0, "divisor": 1.0, "begin": 0.5, "beta": 0.7}
    method, batch = make(epoch=2, **options)
    batch, teacher = method.perturb(batch), pupils.teacher()
    adversarial, answer = method.model(batch.x_adv), teacher(batch.x_adv).detach()
    theirs = 25 * reference.mean(reference.kl(answer / 5, adversarial / 5))
    own = reference.kl(method.model(batch.x), adversarial)
    omega = [float(answer.softmax(dim=1)[i, label]) ** 0.7 for i, label in enumerate(batch.y.tolist())]
    rest = reference.mean([(1 - w) * b for w, b in zip(omega, own, strict=True)])
    assert method.loss(batch).total.item() == pytest.approx(theirs + rest, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)
    method.clock.epoch = 1
    assert method.loss(batch).total.item() == pytest.approx(theirs, abs=1e-12)


def test_the_attack_ascends_the_disagreement_through_both_networks() -> None:
    """A search through the student alone ends elsewhere."""
    method, batch = make(norm="batch")
    network, teacher = worlds.cnn(norm="batch").eval(), pupils.teacher(norm="batch")
    found = {}
    for both in (True, False):
        x_adv = method.attack.begin(batch.x, 0.1, method.rng())
        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            log_p = teacher(x_adv if both else x_adv.detach()).log_softmax(dim=1)
            distance = (log_p.exp() * (log_p - network(x_adv).log_softmax(dim=1))).sum()
            (grad,) = torch.autograd.grad(distance, x_adv)
            x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(batch.x - 0.1, batch.x + 0.1).clamp(0, 1)
        found[both] = x_adv
    x_adv = method.perturb(batch).x_adv
    torch.testing.assert_close(x_adv, found[True], rtol=0, atol=1e-12)
    assert not torch.allclose(x_adv, found[False])


def test_a_student_that_is_its_teacher_is_not_attacked_nor_taught() -> None:
    """The gradient is nothing; its sign still moves the image, so that the image tells nothing."""
    method, batch = make()
    method.model.load_state_dict(pupils.teacher().state_dict())
    x = batch.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(disagreement(method._both(x)).sum(), x)
    assert grad.abs().max() < 1e-12
    loss = method.loss(method.perturb(batch)).total
    grads = torch.autograd.grad(loss, list(method.model.parameters()))
    assert loss.abs() < 1e-12 and all(each.abs().max() < 1e-12 for each in grads)


def test_no_label_is_used_and_statistics_see_the_clean_batch_first() -> None:
    method, batch = make(norm="batch")
    other = replace(batch, y=(batch.y + 1) % 3)
    first, second = method.perturb(batch), method.perturb(other)
    assert torch.equal(first.x_adv, second.x_adv)
    copy = worlds.cnn(norm="batch").train()
    total = method.loss(first).total
    copy(batch.x), copy(first.x_adv)
    assert worlds.same(method.model.state_dict(), copy.state_dict())
    method.model.load_state_dict(worlds.cnn(norm="batch").state_dict())
    assert torch.equal(method.loss(second).total, total)
    assert resolved("method=adaad").attack.bn == "eval" and resolved("method=adaad").method.begin == 1.0
