"""PGD-AT: the best on a linear model, plain cross-entropy on what was found, and standard training as its limit."""

from __future__ import annotations

import pytest
import torch

from atbench.methods.pgd_at import PgdAt
from atbench.methods.standard import Standard
from tests.support import reference, worlds


def test_loss_is_cross_entropy_on_the_adversarial_images() -> None:
    given, method = worlds.data(), PgdAt(worlds.cnn(), worlds.attack())
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    loss = method.loss(batch)
    logits = method.model(batch.x_adv)
    assert loss.total.item() == pytest.approx(reference.mean(reference.ce(logits, batch.y)), abs=1e-12)
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        (logits.argmax(1) == batch.y).double().mean().item()
    )


def test_label_smoothing_is_of_the_update_and_not_of_the_attack() -> None:
    given, method = worlds.data(), PgdAt(worlds.cnn(), worlds.attack())
    worlds.start(method, given)
    batch = given.batch(0, 0)
    plain = method.perturb(batch)
    method.risk.label_smoothing = 0.3
    assert torch.equal(method.perturb(batch).x_adv, plain.x_adv)
    logits = method.model(plain.x_adv)
    every = [reference.ce(logits, torch.full_like(batch.y, k)) for k in range(3)]
    smooth = [
        0.7 * true + 0.1 * sum(row)
        for true, row in zip(reference.ce(logits, batch.y), zip(*every, strict=True), strict=True)
    ]
    assert method.loss(plain).total.item() == pytest.approx(reference.mean(smooth), abs=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_legal_and_raise_the_loss(norm: str) -> None:
    given, method = worlds.data(), PgdAt(worlds.cnn(), worlds.attack(norm=norm, eps=0.3, start="zero"))
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    assert (method.attack.ball.norm(batch.x_adv - batch.x) <= 0.3 + 1e-12).all()
    assert batch.x_adv.min() >= 0 and batch.x_adv.max() <= 1
    assert method.loss(batch).total > method.loss(batch.with_adv(batch.x)).total


def test_one_long_step_reaches_the_worst_corner_of_a_linear_model() -> None:
    """Two classes, α = 2ε, any start: x + ε·sign(∇), cut by the box."""
    given = worlds.data(worlds.source(classes=2))
    network = worlds.linear(classes=2)
    method = PgdAt(network, worlds.attack(steps=1, step_size=0.2))
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    w = (network.head.weight[1] - network.head.weight[0]).detach().view(1, 1, 8, 8)
    away = torch.where(batch.y.view(-1, 1, 1, 1) == 0, w, -w).sign()
    torch.testing.assert_close(batch.x_adv, (batch.x + 0.1 * away).clamp(0, 1), rtol=0, atol=1e-15)


def test_perturb_repeats_and_writes_nothing() -> None:
    given, method = worlds.data(), PgdAt(worlds.cnn(norm="batch"), worlds.attack())
    worlds.start(method, given)
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    first, second = method.perturb(batch), method.perturb(batch)
    assert torch.equal(first.x_adv, second.x_adv) and batch.x_adv is None
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
    assert all(module.training for module in method.modules())
    method.clock.step = 1
    assert not torch.equal(method.perturb(batch).x_adv, first.x_adv)  # a start of its own for every step


@pytest.mark.parametrize("options", [{"steps": 0, "start": "zero"}, {"eps": 0.0}], ids=str)
def test_without_a_perturbation_it_is_standard_training(options: dict[str, object]) -> None:
    given = worlds.data()
    ends = []
    for method in (
        PgdAt(worlds.cnn(norm="batch"), worlds.attack(**options)),
        Standard(worlds.cnn(norm="batch"), worlds.attack()),
    ):
        worlds.steps(method, given, 6)
        ends.append(worlds.snapshot(method))
    assert worlds.same(*ends)


def test_it_learns() -> None:
    given, method = worlds.data(), PgdAt(worlds.cnn(width=8), worlds.attack(eps=0.03, step_size=0.01))
    losses = worlds.steps(method, given, 60, epochs=15, lr=0.5)
    assert losses[-1] < 0.5 * losses[0]
