"""CFA: what a class is worth is counted, and sets its radius and weight; plain before that; FAWA on top."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.attacks import kl_from
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Report
from atbench.methods.cfa import Cfa
from atbench.methods.pgd_at import PgdAt
from atbench.methods.trades import Trades
from tests.support import reference, worlds
from tests.support.configs import resolved
from tests.support.contract import ALONE, Log, trainer_of

R = torch.tensor([0.2, 0.5, 0.65], dtype=torch.float64)
REPORT = Report({}, lambda **_: 0.0)
TRADES = {"base": "trades", "start": "gaussian"}


def make(given: TrainData | None = None, base: str = "pgd_at", norm: str = "none", **options: Any) -> Cfa:
    given = given or worlds.data()
    settings = {name: options.pop(name) for name in ("start", "bn") if name in options}
    method = Cfa(worlds.cnn(norm=norm), worlds.attack(**settings), base, **options)
    method.setup(given)
    worlds.start(method, given)
    return method


def calibrated(**options: Any) -> tuple[Cfa, Batch]:
    """In the second of four epochs, after one in which classes were robust as `R` says."""
    given = worlds.data()
    method = make(given, begin=0.25, **options)
    method.robust.copy_(R)
    method.clock.epoch = 1
    return method, given.batch(1, 0)


def slow_x_adv(method: Cfa, batch: Batch) -> torch.Tensor:
    """One image after the other, in the ball of its class; `U` or the noise is what the method draws."""
    draws = method.rng()
    noise = draws.uniform(batch.x) if method.base == "pgd_at" else 0.001 * draws.normal(batch.x)
    found = []
    for x, y, u in zip(batch.x, batch.y.tolist(), noise, strict=True):
        eps = (0.5 + float(R[y])) * 0.1
        x_adv = (x + eps * u).clamp(0, 1) if method.base == "pgd_at" else x + u
        p = method.model(x[None]).softmax(dim=1).detach()
        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            z = method.model(x_adv[None])
            value = F.cross_entropy(z, torch.tensor([y])) if method.base == "pgd_at" else kl_from(z, p).sum()
            (grad,) = torch.autograd.grad(value, x_adv)
            x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        found.append(x_adv)
    return torch.stack(found)


@pytest.mark.parametrize("options", [{}, TRADES])
def test_every_class_is_attacked_in_a_ball_of_its_own(options: dict[str, Any]) -> None:
    method, batch = calibrated(**options)
    x_adv = method.perturb(batch).x_adv
    torch.testing.assert_close(x_adv, slow_x_adv(method, batch), rtol=0, atol=1e-12)
    reached = torch.stack([(x_adv - batch.x).abs().flatten(1).amax(dim=1)[batch.y == k].amax() for k in range(3)])
    torch.testing.assert_close(reached, (0.5 + R) * 0.1, rtol=0, atol=1e-12)


def test_on_trades_every_class_has_a_weight_of_its_own() -> None:
    method, batch = calibrated(**TRADES, lambda_2=0.3, beta=4.0)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce, kl = reference.ce(clean, batch.y), reference.kl(clean, adversarial)
    values = []
    for each, divergence, y in zip(ce, kl, batch.y.tolist(), strict=True):
        b = (0.3 + float(R[y])) * 4.0
        values.append(each / (1 + b) + divergence * b / (1 + b))
    assert method.loss(batch).total.item() == pytest.approx(reference.mean(values), abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("options", [{}, TRADES])
def test_what_is_counted_is_the_loss_on_the_adversarial_images(options: dict[str, Any]) -> None:
    """Over an epoch, by class; it is what the next epoch goes by, and the counts begin anew."""
    given = worlds.data()
    method = make(given, clean_pass=False, **options)
    right, seen = [0] * 3, [0] * 3
    for step in range(given.steps):
        method.clock.step = step
        batch = method.perturb(given.batch(0, step))
        for y, predicted in zip(batch.y.tolist(), method.model(batch.x_adv).argmax(dim=1).tolist(), strict=True):
            seen[y], right[y] = seen[y] + 1, right[y] + (predicted == y)
        worlds.steps(method, given, 1, first=step)
    expected = [r / n for r, n in zip(right, seen, strict=True)]
    assert len(set(expected)) > 1 and method.epoch_figures()["worst_class"] == pytest.approx(min(expected))
    assert method.on_epoch(REPORT) is None
    assert method.robust.tolist() == pytest.approx(expected) and not method.seen.any() and not method.right.any()


@pytest.mark.parametrize("options", [{}, TRADES])
def test_classes_differ_from_the_share_begin_on(options: dict[str, Any]) -> None:
    method = make(begin=10 / 200, **options)
    method.robust.copy_(R)
    method.clock.epochs = 200
    for epoch in (0, 9, 10, 199):
        method.clock.epoch = epoch
        factors = torch.ones(3, dtype=torch.float64) if epoch < 10 else 0.5 + R
        assert torch.equal(method.class_factors(0.5), factors)
        assert method.epoch_figures()["eps_mean"] == pytest.approx(0.1 * float(factors.mean()))


@pytest.mark.parametrize("alike", [False, True])
def test_classes_that_are_alike_are_the_base(alike: bool) -> None:
    """Before `begin`, and with r_c = 1 − λ: PGD-AT to the bit; of TRADES the loss over 1 + β."""
    given = worlds.data()
    method, plain = (
        make(given, bn="train", norm="batch", begin=0.25),
        PgdAt(worlds.cnn(norm="batch"), worlds.attack(bn="train"), clean_pass=True),
    )
    trades, base = make(given, **TRADES, begin=0.25), Trades(worlds.cnn(), worlds.attack(start="gaussian"))
    worlds.start(base, given)
    if alike:
        method.robust.fill_(0.5)
        trades.robust.fill_(0.5)
        trades.clock.epoch = base.clock.epoch = 1
    first = given.steps if alike else 0
    assert worlds.steps(method, given, 4, first=first) == worlds.steps(plain, given, 4, first=first)
    assert worlds.same(plain.state_dict(), {name: method.state_dict()[name] for name in plain.state_dict()})
    ours, theirs = trades.perturb(given.batch(1, 0)), base.perturb(given.batch(1, 0))
    assert torch.equal(ours.x_adv, theirs.x_adv)
    assert 7 * trades.loss(ours).total.item() == pytest.approx(base.loss(theirs).total.item(), rel=1e-12)


def test_unknown_base_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.base"):
        make(base="fat")


def test_fawa_comes_with_the_method_and_can_be_left_out() -> None:
    assert resolved("method=cfa").plus.fawa.decay == 0.88 and not resolved("method=cfa", "~plus.fawa").plus
    assert list(resolved("method=cfa", "~plus.fawa", "plus=ema").plus) == ["ema"]


def test_the_worst_class_stands_in_every_row() -> None:
    log = Log()
    trainer_of("cfa", ALONE, log).fit()
    assert all(0 <= row["method"]["worst_class"] <= row["train"]["accuracy"] for row in log.rows)
    assert all(0 <= row["val"]["worst_class"] <= row["val"]["pgd"] for row in log.rows)


def test_contract() -> None:
    given = worlds.data()
    for options in ({}, TRADES):
        worlds.check_pure(make(given, **options), given.batch(0, 0))
        worlds.check_resume(lambda options=options: make(given, **options), given)
        worlds.check_ranks(lambda data, options=options: make(data, **options))
