"""Temporal ensembling: whose average is whose target, when it begins, and both losses against the formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atbench.config.instantiate import build
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.te import PgdAtTe, TradesTe
from atbench.methods.trades import Trades
from tests.support import reference, worlds
from tests.support.configs import resolved

Te = PgdAtTe | TradesTe
BOTH = pytest.mark.parametrize("kind", [PgdAtTe, TradesTe])
START = {PgdAtTe: "uniform", TradesTe: "gaussian"}


def make(
    kind: type[Te], given: TrainData, norm: str = "none", steps: int = 3, seed: int = 0, **options: float
) -> tuple[Te, Batch]:
    """From the first step on, and a table that others than the first visit have filled."""
    search = worlds.attack(start=START[kind], steps=steps)
    method = kind(worlds.cnn(norm=norm, seed=seed), search, **{"weight": 30.0, "start": 0.0, "full": 0.5, **options})
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def filled(method: Te) -> None:
    rng = torch.Generator().manual_seed(5)
    method.ensembling.table.copy_(0.5 * torch.rand(method.ensembling.table.shape, generator=rng, dtype=torch.float64))


@BOTH
def test_the_first_visit_makes_the_prediction_its_own_target(kind: type[Te]) -> None:
    method, batch = make(kind, worlds.data(), norm="batch")
    method.model.train()(batch.x)  # so that the modes of BatchNorm differ
    p = method.model.eval()(batch.x).softmax(dim=1).detach()
    method.train()
    perturbed = method.perturb(batch)
    torch.testing.assert_close(perturbed.aux["target"], p, rtol=0, atol=1e-15)
    assert not method.ensembling.table.any(), "`perturb` writes nothing"
    method.after_update(perturbed)
    table = method.ensembling.table
    torch.testing.assert_close(table[batch.index], 0.1 * p, rtol=0, atol=1e-15)
    others = torch.ones(len(table), dtype=torch.bool)
    others[batch.index] = False
    assert others.any() and not table[others].any()


@BOTH
def test_later_visits_average_and_targets_add_up_to_one(kind: type[Te]) -> None:
    method, batch = make(kind, worlds.data())
    filled(method)
    old, p = method.ensembling.table[batch.index], method.model(batch.x).softmax(dim=1).detach()
    aux = method.perturb(batch).aux
    average = 0.9 * old + 0.1 * p
    torch.testing.assert_close(aux["average"], average, rtol=0, atol=1e-15)
    for row, target in zip(average.tolist(), aux["target"].tolist(), strict=True):
        assert target == pytest.approx([value / math.fsum(row) for value in row], abs=1e-15)
    torch.testing.assert_close(aux["target"].sum(dim=1), torch.ones(len(batch), dtype=torch.float64))
    assert (aux["target"] - p).abs().max() > 0.01


@BOTH
def test_who_swaps_indices_gets_the_others_target(kind: type[Te]) -> None:
    method, batch = make(kind, worlds.data())
    filled(method)
    index = batch.index.clone()
    index[0], index[1] = batch.index[1], batch.index[0]
    same = batch.x[:1].expand_as(batch.x)  # one image, so that targets differ by their memory alone
    straight = method.perturb(Batch(same, batch.y, batch.index)).aux["target"]
    swapped = method.perturb(Batch(same, batch.y, index)).aux["target"]
    torch.testing.assert_close(swapped[:2], straight[:2].flip(0), rtol=0, atol=1e-15)
    assert torch.equal(swapped[2:], straight[2:]) and (straight[0] - straight[1]).abs().max() > 0.01


def test_the_weight_rises_as_in_the_source() -> None:
    """train_te.py: epochs counted from 1, 0 before 90, exp(−5 (1 − u)²) with u = (e − 90) / 60, 1 from 150 on."""
    method, _ = make(PgdAtTe, worlds.data(), weight=300.0, start=89 / 200, full=149 / 200)
    for epoch, expected in {1: 0.0, 89: 0.0, 90: math.exp(-5), 120: math.exp(-5 / 4), 150: 1.0, 200: 1.0}.items():
        method.clock.epochs, method.clock.epoch, method.clock.step = 200, epoch - 1, 0
        assert method.ensembling.strength(method.clock.fraction) == pytest.approx(300 * expected, rel=1e-12)
        assert method.forward_cost(10) == (24 if expected else 23)
    method.clock.epoch, method.clock.step = 88, method.clock.steps - 1
    assert method.forward_cost(10) == 23, "the last step of epoch 89"


def test_a_weight_may_jump_and_may_not_fall() -> None:
    method, _ = make(PgdAtTe, worlds.data(), start=0.5, full=0.5)
    assert [method.ensembling.strength(share) for share in (0.49, 0.5, 0.9)] == [0.0, 30.0, 30.0]
    with pytest.raises(ConfigError, match=r"method\.full.*0\.3.*before it begins"):
        make(PgdAtTe, worlds.data(), start=0.5, full=0.3)


def squared(logits: Tensor, target: Tensor) -> list[float]:
    """The mean over classes of (p − t)² of each example."""
    values = []
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        p = [math.exp(value) for value in reference.log_softmax(row)]
        values.append(reference.mean([(a - b) ** 2 for a, b in zip(p, wanted, strict=True)]))
    return values


@BOTH
def test_loss_is_the_formula(kind: type[Te]) -> None:
    method, batch = make(kind, worlds.data())
    filled(method)
    method.clock.epoch = 1
    w = 30 * math.exp(-5 * 0.25)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    if kind is PgdAtTe:
        base, looked_at = reference.mean(reference.ce(adversarial, batch.y)), adversarial
    else:
        ce, kl = reference.ce(clean, batch.y), reference.kl(clean, adversarial)
        base, looked_at = reference.mean(ce) + 6 * reference.mean(kl), clean
    loss, drift = method.loss(batch), reference.mean(squared(looked_at, batch.aux["target"]))
    assert loss.total.item() == pytest.approx(base + w * drift, abs=1e-12)
    assert loss.terms["mse"].item() == pytest.approx(drift, abs=1e-14) and w * drift > 0.01
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


@BOTH
def test_the_attack_climbs_the_whole_loss_of_each_example(kind: type[Te]) -> None:
    """A search of two steps, image by image; without the term of the average it ends elsewhere."""
    given = worlds.data()
    method, batch = make(kind, given, steps=2, weight=30.0, full=0.0)
    filled(method)
    found, model = method.perturb(batch), method.model
    begin, target = method.attack.begin(batch.x, 0.1, method.rng()), found.aux["target"]

    def climb(w: float, i: int) -> Tensor:
        x, x_adv = batch.x[i : i + 1], begin[i : i + 1]
        p = model(x).log_softmax(dim=1).detach()
        for _ in range(2):
            x_adv = x_adv.detach().requires_grad_()
            q = model(x_adv).log_softmax(dim=1)
            base = -q[0, batch.y[i]] if kind is PgdAtTe else 6 * (p.exp() * (p - q)).sum()
            (grad,) = torch.autograd.grad(base + w * (q.exp() - target[i]).square().sum() / 3, x_adv)
            x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        return x_adv

    whole, without = (torch.cat([climb(w, i) for i in range(len(batch))]) for w in (30.0, 0.0))
    torch.testing.assert_close(found.x_adv, whole, rtol=0, atol=1e-12)
    assert (found.x_adv - without).abs().max() > 0.05


def test_the_first_gradient_is_taken_where_the_start_lies() -> None:
    """loss.py, PGD_TE: x + U(−ε, ε) is not clipped before it; every later point is."""
    node = resolved("method=pgd_at_te", "attack.eps=0.1", "attack.steps=3").attack
    given = worlds.data()
    method = PgdAtTe(worlds.cnn(), build(node, "attack"), start=0.5)
    method.setup(given)
    worlds.start(method, given)
    batch = given.batch(0, 0)
    batch = Batch(batch.x.round(), batch.y, batch.index)  # black and white
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    method.perturb(batch)
    offset = 0.1 * method.rng().uniform(batch.x)
    torch.testing.assert_close(seen[0], batch.x + offset, rtol=0, atol=0)
    assert seen[0].min() < -0.09 and all(x.min() >= 0 and x.max() <= 1 for x in seen[1:])


@pytest.mark.parametrize(("kind", "base"), [(PgdAtTe, PgdAt), (TradesTe, Trades)])
def test_before_its_start_it_is_the_base_to_the_bit(kind: type[Te], base: Callable[..., Trades | PgdAt]) -> None:
    given = worlds.data()
    method, _ = make(kind, given, norm="batch", start=0.5, full=0.75)
    plain = base(worlds.cnn(norm="batch"), worlds.attack(start=START[kind]))
    half = 2 * given.steps
    assert worlds.steps(method, given, half) == worlds.steps(plain, given, half)
    assert worlds.same(method.model.state_dict(), plain.model.state_dict())
    assert not method.ensembling.table.any()
    assert worlds.steps(method, given, 1, first=half) != worlds.steps(plain, given, 1, first=half)
    assert method.ensembling.table.any()


@BOTH
def test_contract(kind: type[Te]) -> None:
    given = worlds.data()
    method, batch = make(kind, given)
    filled(method)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: make(kind, given)[0], given, count=10)


@BOTH
def test_two_processes_are_one(kind: type[Te]) -> None:
    def ready(given: TrainData) -> Te:
        method, _ = make(kind, given)
        filled(method)
        return method

    worlds.check_ranks(ready)
