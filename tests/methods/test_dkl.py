"""IKL-AT: the KL taken apart, the class table of the epoch before, and the radius that grows with the epochs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import cross_entropy
from atbench.data import Batch, Shard, TrainData
from atbench.methods.dkl import Dkl, logit_deviation
from atbench.methods.trades import Trades
from tests.support import reference, worlds

K = 3


def make(given: TrainData, attack: dict[str, Any] | None = None, norm: str = "none", **options: Any) -> Dkl:
    method = Dkl(worlds.cnn(norm=norm), worlds.attack(**{"start": "gaussian", **(attack or {})}), **options)
    method.setup(given)
    worlds.start(method, given)
    return method


def at(method: Dkl, given: TrainData, epoch: int, step: int) -> Batch:
    method.clock.epoch, method.clock.step = epoch, step
    return given.batch(epoch, step)


def slow_deviation(z: list[float], other: list[float], s: list[float]) -> float:
    classes = range(len(z))
    return 0.25 * math.fsum(
        s[j] * s[k] * ((z[j] - z[k]) - (other[j] - other[k])) ** 2 for j in classes for k in classes
    )


def slow(method: Dkl, batch: Batch) -> float:
    """The loss, example by example and pair of classes by pair."""
    clean, adversarial = (method.model(x).tolist() for x in (batch.x, batch.x_adv))
    natural, soft, deviation, mass = [], [], [], []
    for z, other, label in zip(clean, adversarial, batch.y.tolist(), strict=True):
        log_p, log_q = reference.log_softmax(z), reference.log_softmax(other)
        natural.append(-log_p[label])
        soft.append(-math.fsum(math.exp(a) * b for a, b in zip(log_p, log_q, strict=True)))
        s = [value**method.gamma for value in method.table[label].tolist()]
        deviation.append(slow_deviation(z, other, s))
        mass.append(math.fsum(a * b for a in s for b in s))
    weighted = math.fsum(deviation) / math.fsum(mass)
    return reference.mean(natural) + method.alpha * reference.mean(soft) + method.beta * weighted


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def logits(random: torch.Generator, rows: int = 6, classes: int = 5) -> Tensor:
    return (2 * torch.randn((rows, classes), generator=random, dtype=torch.float64)).requires_grad_()


def test_the_kl_and_its_parts_have_the_same_gradients(random: torch.Generator) -> None:
    """∇ KL(p ‖ p') = ∇ [ ¼ Σ sg(p pᵀ) (Δ − sg Δ')² + CE(sg p, z') ], to both arguments: what it rests on."""
    z, other = logits(random), logits(random)
    kl = F.kl_div(other.log_softmax(dim=1), z.log_softmax(dim=1), reduction="sum", log_target=True)
    whole = torch.autograd.grad(kl, (z, other))
    p = z.detach().softmax(dim=1)
    parts = logit_deviation(z, other.detach(), p) + cross_entropy(other, p)
    for a, b in zip(torch.autograd.grad(parts.sum(), (z, other)), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_the_deviation_is_the_sum_over_pairs_and_zero_for_equal_shifts(random: torch.Generator) -> None:
    z, other = logits(random), logits(random)
    weights = torch.rand((6, 5), generator=random, dtype=torch.float64) + 0.1
    expected = [slow_deviation(a, b, s) for a, b, s in zip(z.tolist(), other.tolist(), weights.tolist(), strict=True)]
    torch.testing.assert_close(logit_deviation(z, other, weights), torch.tensor(expected, dtype=torch.float64))
    shift = torch.randn((6, 1), generator=random, dtype=torch.float64)
    assert logit_deviation(z, z + shift, weights).abs().max() < 1e-25
    assert logit_deviation(z, other, weights).min() > 1e-3
    big = torch.tensor([[1e8, 1e8 + 1, 1e8]], dtype=torch.float64)
    exact = slow_deviation([0.0, 1.0, 0.0], [0.0] * 3, [1 / 3] * 3)
    assert logit_deviation(big, 0 * big, torch.full((1, 3), 1 / 3).double()).item() == pytest.approx(exact)


@pytest.mark.parametrize("gamma", [1.0, 0.3])
@pytest.mark.parametrize("epoch", [0, 2])
def test_loss_is_the_formula_with_the_table_of_the_epoch_before(epoch: int, gamma: float) -> None:
    given = worlds.data()
    method = make(given, gamma=gamma)
    worlds.steps(method, given, epoch * given.steps)
    batch = method.perturb(at(method, given, epoch, 1))
    assert method.loss(batch).total.item() == pytest.approx(slow(method, batch), abs=1e-11)
    assert (epoch == 0) == torch.equal(method.table, torch.full((K, K), 1 / K, dtype=torch.float64))


def test_the_gradient_flows_through_both_differences_and_not_through_the_soft_label() -> None:
    given = worlds.data()
    method = make(given)
    worlds.steps(method, given, 5)
    batch = method.perturb(at(method, given, 1, 1))
    p = method.model(batch.x).detach().softmax(dim=1)

    def with_fixed_label() -> Tensor:
        clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
        deviation = logit_deviation(clean, adversarial, method.table[batch.y]).mean()
        return F.cross_entropy(clean, batch.y) + 4 * cross_entropy(adversarial, p).mean() + 20 * deviation

    _, measured = reference.slopes(method.model, with_fixed_label)
    exact, _ = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_the_table_is_the_mean_prediction_of_each_class_in_training() -> None:
    """Accumulated from the logits of the update's own pass, renewed at the end of an epoch and at no other step."""
    given = worlds.data()
    method = make(given, temperature=2.0)
    seen: list[tuple[Tensor, Tensor]] = []
    original = method.loss

    def spying(batch: Batch) -> Any:
        seen.append((batch.y, method.model(batch.x).detach()))
        return original(batch)

    method.loss = spying  # type: ignore[method-assign]
    tables = []
    for step in range(2 * given.steps):
        worlds.steps(method, given, 1, first=step)
        tables.append(method.table.clone())
    for epoch in (0, 1):
        here = seen[epoch * given.steps : (epoch + 1) * given.steps]
        y, z = (torch.cat(part) for part in zip(*here, strict=True))
        expected = torch.stack([(z[y == k] / 2).softmax(dim=1).mean(dim=0) for k in range(K)])
        torch.testing.assert_close(tables[(epoch + 1) * given.steps - 1], expected, rtol=0, atol=1e-12)
    assert all(torch.equal(tables[0], table) for table in tables[: given.steps - 1])
    assert all(torch.equal(tables[given.steps - 1], table) for table in tables[given.steps - 1 : -1])
    torch.testing.assert_close(tables[-1].sum(dim=1), torch.ones(K, dtype=torch.float64))
    assert torch.equal(method.sums, torch.zeros(K, K, dtype=torch.float64))


def test_a_class_without_an_image_keeps_its_row() -> None:
    given = worlds.data()
    method = make(given)
    batch = method.perturb(at(method, given, 0, given.steps - 1))
    batch.y.clamp_(max=1)
    method.loss(batch)
    method.after_update(batch)
    assert torch.equal(method.table[2], torch.full((K,), 1 / K, dtype=torch.float64))
    assert not torch.allclose(method.table[0], method.table[2])


@pytest.mark.parametrize(("ramp", "shares"), [(True, [0.25, 0.5, 0.75, 1.0]), (False, [1.0] * 4)])
def test_the_radius_grows_with_the_epochs(ramp: bool, shares: list[float]) -> None:
    given = worlds.data(worlds.source(inset=0.2))
    method = make(given, {"steps": 5, "step_size": 0.05}, ramp=ramp)
    for epoch, share in enumerate(shares):
        batch = method.perturb(at(method, given, epoch, 0))
        assert (batch.x_adv - batch.x).abs().max().item() == pytest.approx(0.1 * share)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_attack_is_that_of_a_slow_reference(weight: float) -> None:
    given = worlds.data()
    method = make(given, attack_beta=weight, gamma=0.3)
    worlds.steps(method, given, 5)
    batch = at(method, given, 1, 2)
    found, start = method.perturb(batch).x_adv, method.attack.begin(batch.x, 0.05, method.rng())
    for i in range(4):
        x, x_adv = batch.x[i : i + 1], start[i : i + 1]
        z, s = method.model(x).detach(), method.table[batch.y[i]]
        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            other = method.model(x_adv)
            drift = (z - other)[0]
            pairs = 0.25 * (s[:, None] * s[None] * (drift[:, None] - drift[None]).square()).sum()
            value = -(z.softmax(dim=1) * other.log_softmax(dim=1)).sum() + weight * pairs
            (grad,) = torch.autograd.grad(value, x_adv)
            x_adv = torch.max(torch.min(x_adv.detach() + 0.02 * grad.sign(), x + 0.05), x - 0.05).clip(0, 1)
        torch.testing.assert_close(found[i : i + 1], x_adv, rtol=0, atol=1e-12)


def test_without_the_deviation_it_attacks_as_trades_does() -> None:
    given = worlds.data()
    method, trades = make(given, ramp=False), Trades(worlds.cnn(), worlds.attack(start="gaussian"))
    worlds.start(trades, given)
    batch = given.batch(0, 0)
    assert torch.equal(method.perturb(batch).x_adv, trades.perturb(batch).x_adv)


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_contract(gamma: float) -> None:
    given = worlds.data()
    method = make(given, gamma=gamma)
    worlds.steps(method, given, 5)
    found = worlds.check_pure(method, at(method, given, 1, 1))
    assert worlds.legal(method.attack, found.x, found.x_adv, 0.05)
    worlds.check_resume(lambda: make(given, gamma=gamma), given)
    assert method.forward_cost(5) == 17


def test_two_processes_are_one() -> None:
    worlds.check_ranks(make)


def test_two_processes_divide_by_the_joint_weight() -> None:
    given = worlds.data()
    trained = make(given, gamma=0.3)
    worlds.steps(trained, given, 5)
    joint, totals = given.batch(1, 0).y, {}
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        part = worlds.data(shard=Shard(rank, world))
        method = make(part, gamma=0.3)
        method.load_state_dict(trained.state_dict())
        method.gather = lambda rows: (trained.table[joint] ** 0.3).sum(dim=1).square()  # type: ignore[method-assign]
        batch = method.perturb(at(method, part, 1, 0))
        totals[rank, world] = method.loss(batch).total.item()
    assert (totals[0, 2] + totals[1, 2]) / 2 == pytest.approx(totals[0, 1], abs=1e-12)
    assert totals[0, 1] != pytest.approx(totals[0, 2], abs=1e-6)
