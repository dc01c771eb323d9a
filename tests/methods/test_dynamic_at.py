"""Dynamic AT: FOSC in closed form, who stops where, thresholds that fall, and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.dynamic_at import DynamicAt, fosc
from tests.support import reference, worlds
from tests.support.worlds import F64

STEPS = 6


def search(**changes: Any) -> GradientAttack:
    return worlds.attack(**{"steps": STEPS, "step_size": 0.05, "clip_start": False, **changes})


def make(given: TrainData, attack: GradientAttack | None = None, norm: str = "none", **options: Any) -> DynamicAt:
    """A method on a network with gradients that are large enough for losses to change within the ball."""
    model = worlds.cnn(width=8, norm=norm)
    with torch.no_grad():
        model.head.weight *= 40
    method = DynamicAt(model, attack or search(), **options)
    worlds.start(method, given, epochs=120)
    return method


def gradient(method: DynamicAt, x_adv: Tensor, y: Tensor) -> Tensor:
    x_adv = x_adv.detach().requires_grad_()
    method.eval()
    total = F.cross_entropy(method.model(x_adv), y, reduction="sum")
    method.train()
    return torch.autograd.grad(total, x_adv)[0]


def fosc_by_search(grad: Tensor, delta: Tensor, eps: float, norm: str) -> list[float]:
    """max ⟨u − x', g⟩ over the vertices of the ball, for L2 at its point along g, one example after the other."""
    values = []
    for g, d in zip(grad.flatten(1), delta.flatten(1), strict=True):
        if norm == "linf":
            vertices = torch.cartesian_prod(*[torch.tensor([-eps, eps], dtype=F64)] * len(g))
        elif norm == "l1":
            vertices = torch.cat([eps * torch.eye(len(g), dtype=F64), -eps * torch.eye(len(g), dtype=F64)])
        else:
            vertices = (eps * g / g.square().sum().sqrt())[None]
        values.append(max(float(((u - d) * g).sum()) for u in vertices))
    return values


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fosc_is_the_maximum_over_the_ball(norm: str) -> None:
    rng = torch.Generator().manual_seed(0)
    grad, delta = (torch.randn((5, 1, 2, 3), generator=rng, dtype=F64) for _ in range(2))
    found = fosc(grad, 0.01 * delta, 0.1, norm)
    assert found.tolist() == pytest.approx(fosc_by_search(grad, 0.01 * delta, 0.1, norm), abs=1e-12)


def test_fosc_of_a_linear_loss() -> None:
    """ε‖a‖₁ at x, 0 at the best corner, 2ε‖a‖₁ at the worst."""
    a = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=F64)
    length = 0.1 * a.abs().sum().item()
    for share, expected in ((0, length), (1, 0), (-1, 2 * length)):
        assert fosc(a, share * 0.1 * a.sign(), 0.1).item() == pytest.approx(expected, abs=1e-12)


def slow(method: DynamicAt, batch: Batch) -> tuple[Tensor, list[int], list[float]]:
    """x', the steps that each example took, and every c that was compared, one example after the other."""
    start = method.attack.begin(batch.x, 0.1, method.rng())
    found, taken, measured = [], [], []
    for i in range(len(batch)):
        x, y, x_adv = batch.x[i : i + 1], batch.y[i : i + 1], start[i : i + 1]
        origin, grad = (x, x_adv)[method.origin == "start"], gradient(method, x_adv, y)
        count = 0
        while count < STEPS:
            moved = x_adv + 0.05 * grad.sign()
            x_adv = torch.max(torch.min(moved, x + 0.1), x - 0.1).clamp(0, 1)
            grad, count = gradient(method, x_adv, y), count + 1
            measured.append(0.1 * grad.abs().sum().item() - (grad * (x_adv - origin)).sum().item())
            if measured[-1] <= method.threshold:
                break
        found.append(x_adv)
        taken.append(count)
    return torch.cat(found), taken, measured


@pytest.mark.parametrize(("origin", "c_max"), [("clean", 0.12), ("start", 0.15)])
def test_images_are_those_of_a_slow_loop(origin: str, c_max: float) -> None:
    given = worlds.data(batch_size=24)
    method = make(given, origin=origin, c_max=c_max)
    batch = given.batch(0, 0)
    expected, taken, _ = slow(method, batch)
    assert len(set(taken)) > 2 and min(taken) < STEPS, taken
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-12)


def test_fosc_from_the_image_is_never_negative_and_from_the_start_it_is() -> None:
    """Why the released code does not become full PGD where c_t is 0."""
    given = worlds.data(batch_size=24)
    least = {}
    for origin in ("clean", "start"):
        method = make(given, origin=origin, c_max=0.0)
        least[origin] = min(slow(method, given.batch(0, 0))[2])
    assert least["clean"] >= -1e-12 and least["start"] < -0.01


def test_without_a_threshold_it_is_pgd_to_the_bit() -> None:
    given = worlds.data(batch_size=24)
    method = make(given, c_max=0.0)
    batch = given.batch(0, 0)
    plain = super(DynamicAt, method).perturb(batch)
    assert torch.equal(method.perturb(batch).x_adv, plain.x_adv)
    method.origin = "start"
    assert not torch.equal(method.perturb(batch).x_adv, plain.x_adv)


@pytest.mark.parametrize("origin", ["clean", "start"])
def test_a_threshold_out_of_reach_is_one_step(origin: str) -> None:
    given = worlds.data()
    method = make(given, c_max=1e9, origin=origin)
    one = make(given, search(steps=1), c_max=0.0)
    batch = given.batch(0, 0)
    assert torch.equal(method.perturb(batch).x_adv, one.perturb(batch).x_adv)


def test_the_first_gradient_is_taken_outside_the_box() -> None:
    given = worlds.data()
    seen: list[Tensor] = []
    method = make(given)
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    batch = given.batch(0, 0)
    black = Batch(torch.zeros_like(batch.x), batch.y, batch.index)
    x_adv = method.perturb(black).x_adv
    assert seen[0].min() < -0.05 and all(later.min() >= 0 for later in seen[1:]) and x_adv.min() >= 0


def test_the_threshold_is_the_authors_in_every_epoch() -> None:
    """train_models.py: max(0.5 − 0.5·(epoch / 100), 0) of 120 epochs, epochs from 0."""
    method = make(worlds.data())
    for epoch in range(120):
        method.clock.epoch, method.clock.step = epoch, 3
        assert method.threshold == pytest.approx(max(0.5 - 0.5 * epoch / 100, 0), abs=1e-15)
        assert (method.threshold == 0) == (epoch >= 100)


def weighted(given: TrainData, epoch: int, **options: Any) -> tuple[DynamicAt, Batch]:
    method = make(given, norm="batch", **options)
    method.clock.epoch = epoch
    return method, method.perturb(given.batch(0, 0))


def test_from_the_second_epoch_on_the_loss_is_weighted_by_that_in_eval_mode() -> None:
    given = worlds.data()
    for epoch, options in ((0, {}), (1, {}), (119, {"weighted_from": 1.0})):
        method, batch = weighted(given, epoch, **options)
        with torch.no_grad():
            method.eval()
            doubt = reference.ce(method.model(batch.x_adv), batch.y)
            method.train()
        weights = doubt if epoch == 1 else [1.0] * len(doubt)
        ce = reference.ce(method.model(batch.x_adv), batch.y)
        expected = reference.mean([w * each for w, each in zip(weights, ce, strict=True)])
        assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-9)


def test_weights_have_no_gradient() -> None:
    method, batch = weighted(worlds.data(), 1)
    assert not batch.aux["weight"].requires_grad
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_the_threshold_is_in_the_record() -> None:
    method, batch = weighted(worlds.data(), 50)
    assert method.loss(batch).terms["fosc_threshold"].item() == pytest.approx(0.25)


def test_unknown_origin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.origin"):
        DynamicAt(worlds.cnn(), search(), origin="middle")


def test_contract() -> None:
    given = worlds.data()
    for origin in ("clean", "start"):
        method = make(given, origin=origin, c_max=0.12)
        method.clock.epoch = 1
        batch = worlds.check_pure(method, given.batch(0, 0))
        assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)


@pytest.mark.parametrize("origin", ["clean", "start"])
def test_two_processes_are_one(origin: str) -> None:
    worlds.check_ranks(lambda given: make(given, c_max=0.12, origin=origin, weighted_from=0.0), batch_size=24)
