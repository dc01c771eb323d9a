"""RSLAD: the teacher's probabilities at the clean image stand for the label, in the loss and in the attack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.data import Batch
from atbench.methods.pgd_at import PgdAt
from atbench.methods.rslad import Rslad
from tests.support import pupils, reference, worlds
from tests.support.configs import resolved


def make(**options: Any) -> tuple[Rslad, Batch]:
    return pupils.make(Rslad, attack={"start": "gaussian"}, **options)


def test_loss_is_the_formula() -> None:
    method, batch = make(alpha=0.8, divisor=4.0)
    batch = method.perturb(batch)
    taught = pupils.teacher()(batch.x)
    robust, natural = (reference.mean(reference.kl(taught, method.model(x))) for x in (batch.x_adv, batch.x))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx((0.8 * robust + 0.2 * natural) / 4, abs=1e-12)
    assert loss.terms["kl_clean"].item() == pytest.approx(natural / 4, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_attack_ascends_the_distance_to_the_teachers_clean_answer() -> None:
    method, batch = make(norm="batch")
    network = worlds.cnn(norm="batch").eval()
    p = pupils.teacher(norm="batch")(batch.x).softmax(dim=1).detach()
    x_adv = method.attack.begin(batch.x, 0.1, method.rng())
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.kl_div(network(x_adv).log_softmax(dim=1), p, reduction="sum"), x_adv)
        x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(batch.x - 0.1, batch.x + 0.1).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, x_adv, rtol=0, atol=1e-12)


def test_no_label_is_used() -> None:
    method, batch = make()
    other = replace(batch, y=(batch.y + 1) % 3)
    first, second = method.perturb(batch), method.perturb(other)
    assert torch.equal(first.x_adv, second.x_adv) and torch.equal(method.loss(first).total, method.loss(second).total)


def test_with_a_teacher_that_knows_the_labels_it_is_cross_entropy() -> None:
    """One-hot answers: PGD on the cross-entropy, and a mean of the cross-entropies of both images."""
    method, batch = make(divisor=1.0)
    sure = 200 * F.one_hot(batch.y, 3).double()
    method.teacher.network = Answer(sure)
    plain = PgdAt(worlds.cnn(), method.attack)
    worlds.start(plain, worlds.data())
    perturbed = method.perturb(batch)
    assert torch.equal(perturbed.x_adv, plain.perturb(batch).x_adv)
    expected = [F.cross_entropy(method.model(x), batch.y) for x in (perturbed.x_adv, batch.x)]
    total = 5 / 6 * expected[0] + 1 / 6 * expected[1]
    torch.testing.assert_close(method.loss(perturbed).total, total, rtol=0, atol=1e-12)


class Answer(torch.nn.Module):
    """A network that says the same whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_statistics_see_the_attacked_batch_and_then_the_clean_one() -> None:
    method, batch = make(norm="batch")
    batch = method.perturb(batch)
    copy = worlds.cnn(norm="batch").train()
    assert worlds.same(method.model.state_dict(), copy.state_dict()), "the attack is in eval mode"
    method.loss(batch)
    copy(batch.x_adv), copy(batch.x)
    assert worlds.same(method.model.state_dict(), copy.state_dict())
    assert resolved("method=rslad").attack.bn == "eval" and resolved("method=rslad").attack.start == "gaussian"
