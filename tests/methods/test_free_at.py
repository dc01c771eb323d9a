"""Free-m: one backward pass moves weights and δ; δ belongs to the slot and is carried on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.data import TrainData
from atbench.methods.free_at import FreeAt
from atbench.methods.standard import Standard
from tests.support import worlds


def make(
    replays: int = 3, given: TrainData | None = None, gradient: str = "image", **changes: Any
) -> tuple[FreeAt, TrainData]:
    given = given or worlds.data()
    method = FreeAt(worlds.cnn(), worlds.attack(**changes), replays, gradient)
    method.setup(given)
    worlds.start(method, given)
    return method, given


@pytest.mark.parametrize("gradient", ["image", "delta"])
def test_equals_a_slow_loop(gradient: str) -> None:
    """Algorithm 1 over three batches of four replays, written out."""
    method, given = make(replays=4, gradient=gradient)
    network, lr, eps = worlds.cnn(), 0.1, 0.1
    delta, losses = torch.zeros_like(given.batch(0, 0).x), []
    for step in range(3):
        batch = given.batch(0, step)
        for _ in range(4):
            delta.requires_grad_()
            image = (batch.x + delta).clamp(0, 1)
            value = F.cross_entropy(network(image), batch.y)
            losses.append(value.item())
            source = image if gradient == "image" else delta
            *grads, slope = torch.autograd.grad(value, [*network.parameters(), source])
            with torch.no_grad():
                for parameter, grad in zip(network.parameters(), grads, strict=True):
                    parameter -= lr * grad
            delta = (delta.detach() + eps * slope.sign()).clamp(-eps, eps)
    assert worlds.steps(method, given, 3, lr=lr) == pytest.approx(losses, abs=1e-12)
    torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(method.model.state_dict()[name], value, rtol=0, atol=1e-12)


def test_weights_learn_at_the_old_delta() -> None:
    method, given = make()
    worlds.steps(method, given, 1)
    old, batch = method.delta.clone(), given.batch(0, 1)
    for parameter in method.parameters():
        parameter.grad = None
    method.loss(batch).total.backward()
    value = F.cross_entropy(method.model((batch.x + old).clamp(0, 1)), batch.y)
    for parameter, grad in zip(
        method.model.parameters(), torch.autograd.grad(value, list(method.model.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-14)
    assert torch.equal(method.delta, old)  # until `after_update`
    method.after_update(batch)
    assert not torch.equal(method.delta, old)


def test_after_the_first_replay_delta_is_zero_or_full() -> None:
    method, given = make(replays=1)
    assert not method.delta.any()
    worlds.steps(method, given, 1)
    size = method.delta.abs()
    assert ((size == 0) | (size == 0.1)).all() and (size == 0.1).double().mean() > 0.5


def test_only_the_gradient_of_the_image_frees_a_pixel_that_the_box_stops() -> None:
    moved = {}
    for gradient in ("image", "delta"):
        method, given = make(replays=1, gradient=gradient)
        batch = given.batch(0, 0)
        batch = replace(batch, x=torch.zeros_like(batch.x), aux={})
        method.delta.fill_(-0.1)  # every pixel below black
        method.loss(batch).total.backward()
        method.after_update(batch)
        moved[gradient] = float((method.delta != -0.1).double().mean())
    assert moved["delta"] == 0 and moved["image"] > 0.2


@pytest.mark.parametrize("gradient", ["image", "delta"])
@pytest.mark.parametrize("tone", [0.0, 1.0], ids=["black", "white"])
def test_a_pixel_at_the_edge_of_the_box_moves(gradient: str, tone: float) -> None:
    method, given = make(replays=1, gradient=gradient)
    batch = given.batch(0, 0)
    batch = replace(batch, x=torch.full_like(batch.x, tone), aux={})
    method.loss(batch).total.backward()
    method.after_update(batch)
    assert float((method.delta.abs() == 0.1).double().mean()) > 0.2


def test_delta_stays_in_the_ball_of_any_norm() -> None:
    for norm in ("linf", "l2", "l1"):
        method, given = make(norm=norm, eps=0.3)
        worlds.steps(method, given, 4)
        assert (method.attack.ball.norm(method.delta) <= 0.3 + 1e-12).all() and method.delta.abs().sum() > 0


def test_one_replay_with_delta_forgotten_is_standard_training() -> None:
    method, given = make(replays=1)
    for position in range(5):
        method.delta.zero_()
        worlds.steps(method, given, 1, first=position)
    standard = Standard(worlds.cnn(), worlds.attack())
    worlds.steps(standard, given, 5)
    assert worlds.same(dict(method.model.state_dict()), dict(standard.model.state_dict()))


def test_replays_are_updates_and_delta_is_carried_to_the_next_batch() -> None:
    method, given = make(replays=3)
    assert len(worlds.steps(method, given, 2)) == 6
    carried = method.delta.clone()
    batch = given.batch(0, 2)
    logits = method.model((batch.x + carried).clamp(0, 1))
    assert method.loss(batch).total.item() == pytest.approx(F.cross_entropy(logits, batch.y).item(), abs=1e-12)


def test_loss_repeats_and_writes_nothing() -> None:
    method, given = make()
    worlds.steps(method, given, 2)
    batch, before = given.batch(0, 2), worlds.snapshot(method)
    assert torch.equal(method.loss(batch).total, method.loss(batch).total) and worlds.same(
        before, worlds.snapshot(method)
    )


def test_resume_is_exact() -> None:
    straight, given = make()
    worlds.steps(straight, given, 6)
    first, _ = make()
    worlds.steps(first, given, 4)
    second, _ = make()
    second.load_state_dict(worlds.snapshot(first))
    worlds.steps(second, given, 2, first=4)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(second))


def test_a_part_without_labels_has_no_slots() -> None:
    method, given = make(given=worlds.data(labelled=0.5, extra=0.5))
    assert len(method.delta) == len(given.batch(0, 0)) == 6
    worlds.steps(method, given, 2)
