"""TDAT: labels that relax, a perturbation that goes from batch to batch, and the loss against a loop over images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.methods.tdat import Tdat
from tests.support import reference, worlds

EPS = 0.1


def make(given: TrainData | None = None, epochs: int = 4, **options: Any) -> tuple[Tdat, TrainData]:
    given = given or worlds.data()
    network = options.pop("network", None) or worlds.cnn()
    method = Tdat(network, worlds.attack(eps=EPS, norm=options.pop("norm", "linf")), **options)
    worlds.start(method, given, epochs)
    method.setup(given)
    return method, given


def slow_point(network: nn.Module, x: Tensor, delta: Tensor, y: int, gamma: float) -> Tensor:
    """x' of one image: γ on its label, (1 − γ)/2 on the two others."""
    start = (x + delta).requires_grad_()
    log_p = network(start[None]).log_softmax(dim=1)[0]
    value = -sum((gamma if k == y else (1 - gamma) / 2) * log_p[k] for k in range(3))
    assert isinstance(value, Tensor)
    step = start.detach() + EPS * torch.autograd.grad(value, start)[0].sign()
    return torch.max(torch.min(step, x + EPS), x - EPS).clamp(0, 1)


def slow_points(method: Tdat, batch: Batch, delta: Tensor, gamma: float) -> Tensor:
    rows = zip(batch.x, delta, batch.y.tolist(), strict=True)
    return torch.stack([slow_point(method.model, x, d, y, gamma) for x, d, y in rows])


@pytest.mark.parametrize("weight", [0.0, 0.6])
@pytest.mark.parametrize(("epoch", "gamma"), [(0, 0.6 * math.tan(1)), (2, 0.6 * math.tan(0.5)), (3, 0.2)])
def test_loss_is_the_formula(weight: float, epoch: int, gamma: float) -> None:
    method, given = make(weight=weight, floor=0.2)
    worlds.steps(method, given, 5)
    method.clock.epoch = epoch
    batch = given.batch(epoch, 1)
    before, after = method.model(batch.x + method.delta), method.model(slow_points(method, batch, method.delta, gamma))
    # PyTorch's smoothing of 1 − γ: γ on the label, and 1 − γ shared among all classes.
    every = [reference.mean(reference.ce(after, torch.full_like(batch.y, k))) for k in range(3)]
    ce = gamma * reference.mean(reference.ce(after, batch.y)) + (1 - gamma) * reference.mean(every)
    rows = zip(before.tolist(), after.tolist(), reference.ce(before, batch.y), strict=True)
    drift = [
        sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) * math.tanh(1 - math.exp(-risk)) for a, b, risk in rows
    ]
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + weight * reference.mean(drift), abs=1e-12)
    assert loss.terms["drift"].item() == pytest.approx(reference.mean(drift), abs=1e-12)


def test_nothing_but_the_point_is_held_constant() -> None:
    method, given = make()
    batch, gamma = given.batch(0, 0), 0.6 * math.tan(1)
    x_adv = slow_points(method, batch, method.delta, gamma)
    before, after = method.model(batch.x + method.delta), method.model(x_adv)
    true = before.softmax(1).gather(1, batch.y[:, None]).squeeze(1)
    drift = ((before - after).square().sum(1) * (1 - true).tanh()).sum() / len(batch)
    value = F.cross_entropy(after, batch.y, label_smoothing=1 - gamma) + 0.6 * drift
    expected = torch.autograd.grad(value, list(method.model.parameters()))
    method.loss(batch).total.backward()
    for parameter, grad in zip(method.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)


def test_labels_relax_to_the_floor() -> None:
    """110 epochs: .934 at first, the floor of .15 from epoch 84 on."""
    method, _ = make(epochs=110)
    found = []
    for method.clock.epoch in range(110):
        found.append(method.gamma())
    assert found[0] == pytest.approx(0.9344, abs=1e-4) and found[83] == pytest.approx(0.1503, abs=1e-4)
    assert set(found[84:]) == {0.15} and found == sorted(found, reverse=True)


def test_perturbations_go_from_batch_to_batch() -> None:
    """Row i of a batch starts from where row i of the batch before ended, across epochs too."""
    method, given = make()
    delta = method.delta.clone()
    assert torch.equal(delta.abs(), torch.full_like(delta, EPS)) and len(delta) == 12
    for position in range(6):
        epoch, step = divmod(position, given.steps)
        method.clock.epoch = epoch
        batch = given.batch(epoch, step)
        delta = slow_points(method, batch, delta, method.gamma()) - batch.x
        worlds.steps(method, given, 1, first=position)
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-15)


def test_a_sure_network_has_no_penalty() -> None:
    """p_y(x₀) = 1 switches it off, whatever the distance."""
    network = worlds.linear(scale=300.0)
    method, given = make(network=network)
    batch = given.batch(0, 0)
    y = network(batch.x + method.delta).argmax(dim=1)
    sure = (network(batch.x + method.delta).softmax(1).amax(1) == 1) & (y >= 0)
    assert sure.any()
    method.delta = method.delta[sure]
    loss = method.loss(Batch(batch.x[sure], y[sure], batch.index[sure]))
    assert loss.terms["drift"] == 0 and loss.terms["ce"] > 0


def test_two_forwards_in_train_mode() -> None:
    method, given = make(network=worlds.cnn(norm="batch"))
    method.loss(method.perturb(given.batch(0, 0)))
    assert method.model.stages[1][0].num_batches_tracked == 2  # type: ignore[index,union-attr]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_legal_in_every_norm(norm: str) -> None:
    method, given = make(norm=norm)
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for position in range(3):
        worlds.steps(method, given, 1, first=position)
        x = given.batch(0, position).x
        assert worlds.legal(method.attack, x, seen[-1], EPS)
        assert (method.attack.ball.norm(seen[-2] - x) <= EPS + 1e-12).all(), "the start is in the ball, not in the box"


def test_only_after_update_writes_and_a_resumed_run_is_equal() -> None:
    method, given = make()
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    assert method.perturb(batch) is batch
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method))
    worlds.check_resume(lambda: make()[0], given, 6)


def test_the_perturbation_covers_the_labelled_images_of_a_pool() -> None:
    method, given = make(worlds.data(labelled=0.5, extra=0.5))
    assert len(method.delta) == len(given.batch(0, 0)) == 6
    worlds.steps(method, given, 4)
