"""RST: pseudo-labels are the labeller's, and what follows is TRADES on both kinds of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.data import TrainData
from atbench.errors import ConfigError
from atbench.methods.rst import Rst
from atbench.methods.trades import Trades
from atbench.models import Frozen
from tests.support import worlds

HALF = {"labelled": 0.5, "extra": 0.5}


def make(given: TrainData) -> Rst:
    method = Rst(worlds.cnn(), worlds.attack(start="gaussian"), beta=6.0)
    method.setup(given)
    method.load_pretrained({"labeller": Frozen(worlds.linear(seed=7))})
    worlds.start(method, given)
    return method


def test_without_pool_images_in_a_batch_it_is_trades_step_for_step() -> None:
    given = worlds.data(labelled=0.5, extra=0.0)
    method, trades = make(given), Trades(worlds.cnn(), worlds.attack(start="gaussian"), beta=6.0)
    assert worlds.steps(method, given, 8) == worlds.steps(trades, given, 8)
    assert worlds.same(method.model.state_dict(), trades.model.state_dict())


def test_pseudo_labels_are_the_labellers_in_eval_mode() -> None:
    given = worlds.data(**HALF)
    method, labeller = make(given), worlds.cnn(seed=3, norm="batch")
    assert given.pool is not None
    images = given.pool.x.double() / 255
    with torch.no_grad():
        for _ in range(50):
            labeller.train()(images)
    statistics = {name: value.clone() for name, value in labeller.state_dict().items()}
    method.LABEL_CHUNK = 7
    method.load_pretrained({"labeller": Frozen(labeller)})
    assert worlds.same(statistics, labeller.state_dict())
    expected = labeller.eval()(images).argmax(dim=1)
    assert torch.equal(method.labels, expected)
    assert len(expected.unique()) > 1


def test_half_of_every_batch_is_labelled() -> None:
    given = worlds.data(**HALF)
    method = make(given)
    hidden = len(given.train)
    for step in range(3 * given.steps):
        method.clock.epoch, method.clock.step = divmod(step, given.steps)
        batch = method.perturb(given.batch(*divmod(step, given.steps)))
        labelled = batch.index < hidden
        assert labelled.tolist() == [True] * 6 + [False] * 6
        assert torch.equal(batch.y[labelled], given.train.y[batch.index[labelled]])
        assert torch.equal(batch.y[~labelled], method.labels[batch.index[~labelled] - hidden])
        assert batch.extra is None
        assert given.pool is not None
        assert torch.equal(batch.x[~labelled], given.pool.floats(batch.index[~labelled] - hidden, torch.float64))


def test_attack_and_loss_are_those_of_a_slow_reference() -> None:
    given = worlds.data(**HALF)
    method = make(given)
    worlds.steps(method, given, 4)
    method.clock.epoch, method.clock.step = 2, 0
    batch, model = method.perturb(given.batch(2, 0)), method.model

    def divergence(p: Tensor, x_adv: Tensor) -> Tensor:
        q = model(x_adv).softmax(dim=1)
        return (p * (p / q).log()).sum()

    parts = (batch.x[:6], "search"), (batch.x[6:], "pool")
    begin = torch.cat([x + 0.001 * method.rng(stream).normal(x) for x, stream in parts])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(12):
        x, x_adv = batch.x[i : i + 1], begin[i : i + 1]
        p = model(x).softmax(dim=1)
        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(divergence(p.detach(), x_adv), x_adv)
            moved = x_adv.detach() + 0.04 * grad.sign()
            x_adv = torch.max(torch.min(moved, x + 0.1), x - 0.1).clip(0, 1)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-11)
        total = total + (-p[0, batch.y[i]].log() + 6 * divergence(p, x_adv)) / 12
    torch.testing.assert_close(method.loss(batch).total, total, rtol=0, atol=1e-10)


def test_the_labeller_is_a_standard_run_on_the_labelled_part() -> None:
    given = worlds.data(**HALF)
    (name,), (stage,) = zip(*make(given).pretraining().items(), strict=True)
    assert (name, stage.method, stage.epochs) == ("labeller", {"_target_": "atbench.methods.standard.Standard"}, 1.0)


def test_pseudo_labels_come_back_with_the_state() -> None:
    given = worlds.data(**HALF)
    method, resumed = make(given), Rst(worlds.cnn(), worlds.attack())
    resumed.setup(given)
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.labels, method.labels)


def test_without_labeller_or_pool_it_does_not_train() -> None:
    method = Rst(worlds.cnn(), worlds.attack(start="gaussian"))
    with pytest.raises(ConfigError, match=r"train\.extra_data\.labelled.*unlabelled pool"):
        method.setup(worlds.data())
    given = worlds.data(**HALF)
    method.setup(given)
    with pytest.raises(IndexError):
        worlds.steps(method, given, 1)


def test_contract() -> None:
    given = worlds.data(**HALF)
    method = make(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given), given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(make, **HALF)
