"""GAIR-FAT: examples leave the attack τ steps after they are first wrong, κ counts until then, labels stay theirs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import TrainData
from atbench.methods.fat import Fat
from atbench.methods.gair_fat import GairFat
from atbench.methods.gairat import Gairat
from tests.support import worlds

STEPS = 6


def make(given: TrainData, tau: int = 0, begin: float = 0.0, lam: float = 0.0, steps: int = STEPS) -> GairFat:
    search = worlds.attack(steps=steps, step_size=0.02, start="zero")
    method = GairFat(worlds.linear(scale=0.4), search, lam=lam, begin=begin, tau=tau)
    worlds.start(method, given)
    return method


def slow_attack(network: nn.Module, x: Tensor, y: Tensor, tau: int) -> tuple[Tensor, int]:
    """x' and κ of one image."""
    x_adv, counter, kappa = x.clone(), tau, 0
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        logits = network(x_adv)
        if int(logits.argmax()) == int(y):
            kappa += 1
        elif counter == 0:
            break
        else:
            counter -= 1
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), x_adv)
        x_adv = torch.max(torch.min(x_adv.detach() + 0.02 * grad.sign(), x + 0.1), x - 0.1).clip(0, 1)
    return x_adv.detach(), kappa


@pytest.mark.parametrize("tau", [0, 2])
def test_loss_is_the_formula(tau: int) -> None:
    given = worlds.data(batch_size=24)
    method = make(given, tau)
    batch = method.perturb(given.batch(0, 0))
    kappas, raw, ce = [], [], []
    for i in range(len(batch)):
        x_adv, kappa = slow_attack(method.model, batch.x[i : i + 1], batch.y[i : i + 1], tau)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-12)
        kappas.append(kappa)
        raw.append((1 + math.tanh(5 * (3 - kappa) / 3)) / 2)
        ce.append(F.cross_entropy(method.model(x_adv), batch.y[i : i + 1]).item())
    assert batch.aux["kappa"].tolist() == kappas and len(set(kappas)) > 2
    expected = math.fsum(w * value for w, value in zip(raw, ce, strict=True)) / math.fsum(raw)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-10)
    assert method.epoch_figures() == {"tau": tau}
    assert loss.terms["kappa"].item() == pytest.approx(sum(kappas) / len(kappas))


class Flickering(nn.Module):
    """Right on class 0 at every second look, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.looks = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        sign = 1 if next(self.looks) % 2 else -1
        mean = self.scale * x.flatten(1).mean(dim=1)
        return torch.stack([sign * (1 + mean), -sign * (1 + mean)], dim=1)


def test_an_example_that_has_left_counts_no_more_though_it_is_still_computed() -> None:
    """Few leave at the start, so that the batch is not repacked; they would be right at the second look."""
    given = worlds.data(worlds.source(classes=2))
    method = GairFat(Flickering(), worlds.attack(steps=2), begin=0.0)
    worlds.start(method, given)
    batch = given.batch(0, 0)
    batch.y[:] = 1
    batch.y[:2] = 0
    assert method.perturb(batch).aux["kappa"].tolist() == [0] * 2 + [1] * 10


def test_with_a_tau_of_all_steps_it_is_gairat_and_before_it_begins_it_is_fat() -> None:
    given = worlds.data()
    for ours, other in (
        (make(given, tau=STEPS), Gairat),
        (make(given, tau=1, begin=1.0), Fat),
    ):
        options = {"lam": 0.0, "begin": 0.0} if other is Gairat else {"tau": 1}
        plain = other(worlds.linear(scale=0.4), ours.attack, **options)  # type: ignore[arg-type]
        assert worlds.steps(ours, given, 6) == worlds.steps(plain, given, 6)
        assert worlds.same(worlds.snapshot(ours), worlds.snapshot(plain))


def test_contract() -> None:
    given = worlds.data()
    batch = worlds.check_pure(make(given, 1), given.batch(0, 0))
    assert worlds.legal(worlds.attack(), batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given, 1), given)
