"""FAT: each example stops at the iterate that is wrong after τ others were; TRADES' and MART's losses on top of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import State, kl_from
from atbench.data import Batch, TrainData
from atbench.methods import Method
from atbench.methods.fat import Fat, Friendly, misclassified_more_than
from atbench.methods.fat_mart import FatMart
from atbench.methods.fat_trades import FatTrades
from atbench.methods.mart import Mart
from atbench.methods.pgd_at import PgdAt
from atbench.methods.trades import Trades
from tests.support import reference, worlds

STEPS = 6
PLAIN: dict[type[Friendly], type[Method]] = {Fat: PgdAt, FatTrades: Trades, FatMart: Mart}


def make(given: TrainData, kind: type[Friendly] = Fat, tau: int = 0, **changes: Any) -> Friendly:
    """A method on a network that is right on some images and becomes wrong on some under the attack."""
    begin = {} if kind is Fat else {"start": "gaussian", "clip_start": True}
    attack = worlds.attack(**{"steps": STEPS, "step_size": 0.02, **begin, **changes})
    method = kind(worlds.linear(scale=0.4), attack, tau=tau)  # type: ignore[call-arg]
    worlds.start(method, given)
    return method


def slow(method: Friendly, batch: Batch, tau: int, omega: float) -> tuple[Tensor, list[int]]:
    """x' and the steps that each example took, one example after the other."""
    rng, model = method.rng(), method.model
    begin = method.attack.begin(batch.x, method.attack.eps, rng)
    noise = [rng.normal(batch.x) for _ in range(STEPS)] if omega else [torch.zeros_like(batch.x)] * STEPS
    found, taken = [], []
    for i in range(len(batch)):
        x, y, x_adv, counter, count = batch.x[i : i + 1], batch.y[i : i + 1], begin[i : i + 1], tau, 0
        clean = model(x).detach()
        for step in range(STEPS):
            x_adv = x_adv.detach().requires_grad_()
            logits = model(x_adv)
            if logits.argmax(dim=1) != y:
                if counter == 0:
                    break
                counter -= 1
            kl = isinstance(method, FatTrades)
            value = kl_from(logits, clean.softmax(dim=1)).sum() if kl else F.cross_entropy(logits, y)
            (grad,) = torch.autograd.grad(value, x_adv)
            moved = x_adv.detach() + 0.02 * grad.sign() + omega * noise[step][i : i + 1]
            x_adv, count = torch.max(torch.min(moved, x + 0.1), x - 0.1).clamp(0, 1), count + 1
        found.append(x_adv.detach())
        taken.append(count)
    return torch.cat(found), taken


@pytest.mark.parametrize("omega", [0.0, 0.05])
@pytest.mark.parametrize("tau", [0, 1, 3])
@pytest.mark.parametrize("kind", PLAIN)
def test_images_are_those_of_a_slow_loop(kind: type[Friendly], tau: int, omega: float) -> None:
    given = worlds.data(batch_size=24)
    method = make(given, kind, tau, noise=omega)
    batch = given.batch(0, 0)
    expected, taken = slow(method, batch, tau, omega)
    assert len(set(taken)) > 2, "examples leave at different steps"
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-12)


def test_wrong_iterates_count_whether_consecutive_or_not() -> None:
    """Wrong, right, wrong, right, wrong with τ = 2: done at the third wrong one; a row in front of it has left."""
    y = torch.tensor([0, 0])
    stop = misclassified_more_than(2, y)
    wrong = [True, False, True, False, True]
    found = []
    for step, is_wrong in enumerate(wrong):
        outputs = torch.tensor([[0.0, 1.0]]) if is_wrong else torch.tensor([[1.0, 0.0]])
        none = torch.empty(1)
        found.append(stop(State(step, torch.tensor([1]), none, none, outputs, None)).tolist())
    assert found == [[False]] * 4 + [[True]]


def test_an_image_that_is_wrong_at_the_noisy_start_stays_there() -> None:
    given = worlds.data(batch_size=24)
    method = make(given)
    batch = given.batch(0, 0)
    begin = method.attack.begin(batch.x, method.attack.eps, method.rng())
    wrong = method.model(begin).argmax(dim=1) != batch.y
    assert 0 < int(wrong.sum()) < 24
    x_adv = method.perturb(batch).x_adv
    assert torch.equal(x_adv[wrong], begin[wrong]) and begin.min() >= 0 and begin.max() <= 1
    moved = (x_adv != begin).flatten(1).any(dim=1)
    assert torch.equal(moved, ~wrong)


@pytest.mark.parametrize("kind", PLAIN)
def test_tau_of_all_steps_is_plain_pgd_to_the_bit(kind: type[Friendly]) -> None:
    given = worlds.data()
    friendly = make(given, kind, STEPS)
    plain = PLAIN[kind](worlds.linear(scale=0.4), friendly.attack)
    worlds.start(plain, given)
    batch = given.batch(0, 0)
    assert torch.equal(friendly.perturb(batch).x_adv, plain.perturb(batch).x_adv)
    # An image that is wrong at every iterate loses its last step.
    friendly.tau = STEPS - 1
    assert not torch.equal(friendly.perturb(batch).x_adv, plain.perturb(batch).x_adv)


@pytest.mark.parametrize("kind", PLAIN)
def test_the_loss_is_that_of_the_method_it_is_made_from(kind: type[Friendly]) -> None:
    given = worlds.data()
    method = make(given, kind)
    batch = method.perturb(given.batch(0, 0))
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce, kl = reference.ce(adversarial, batch.y), reference.kl(clean, adversarial)
    if kind is Fat:
        expected = reference.mean(ce)
    elif kind is FatTrades:
        expected = reference.mean(reference.ce(clean, batch.y)) + 6 * reference.mean(kl)
    else:
        each = []
        p_clean, p_adv = clean.softmax(dim=1).tolist(), adversarial.softmax(dim=1).tolist()
        for p, q, y, a, b in zip(p_clean, p_adv, batch.y, ce, kl, strict=True):
            wrong = max(value for k, value in enumerate(q) if k != y)
            each.append(a - math.log(1.0001 - wrong) + 6 * b * (1.0000001 - p[y]))
        expected = reference.mean(each)
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("epochs", "milestones", "changes"),
    [
        (120, (50 / 120, 90 / 120), {50: 1, 90: 2}),
        (85, (30 / 85, 50 / 85, 70 / 85), {30: 1, 50: 2, 70: 3}),
        (90, (20 / 90, 40 / 90, 60 / 90, 80 / 90), {20: 1, 40: 2, 60: 3, 80: 4}),
    ],
)
def test_tau_grows_at_the_start_of_the_authors_epochs(
    epochs: int, milestones: Sequence[float], changes: dict[int, int]
) -> None:
    """adjust_tau, epochs counted from 0: the first step of the epoch already, and no step before it."""
    method = make(worlds.data())
    method.milestones = milestones
    clock = method.clock
    clock.epochs, clock.steps = epochs, 391
    for epoch, tau in changes.items():
        clock.epoch, clock.step = epoch - 1, 390
        assert method.current_tau == tau - 1
        clock.epoch, clock.step = epoch, 0
        assert method.current_tau == tau
    method.tau = 3
    assert method.current_tau == 3 + tau


@pytest.mark.parametrize("kind", PLAIN)
def test_contract(kind: type[Friendly]) -> None:
    given = worlds.data()
    method = make(given, kind, 1, noise=0.01)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    assert method.epoch_figures() == {"tau": 1}


@pytest.mark.parametrize("tau", [0, 1])
def test_two_processes_are_one(tau: int) -> None:
    """They drop their own rows at their own steps, and the noise is the joint batch's."""
    worlds.check_ranks(lambda given: make(given, tau=tau, noise=0.01), batch_size=24)
