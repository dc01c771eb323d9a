"""FGSM-MEP: one step from a remembered start, against a loop over single images; the tables change when they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, PadCropFlip, TrainData
from atbench.methods.fgsm_mep import FgsmMep
from tests.support import reference, worlds

EPS = 0.1


def make(given: TrainData | None = None, epochs: int = 4, **options: Any) -> tuple[FgsmMep, TrainData]:
    given = given or worlds.data()
    norm = options.pop("norm", "linf")
    method = FgsmMep(worlds.cnn(), worlds.attack(norm=norm, eps=EPS), **options)
    method.setup(given)
    worlds.start(method, given, epochs)
    return method, given


def soft(y: int, classes: int = 3, target: float = 0.6) -> list[float]:
    return [target if k == y else (1 - target) / (classes - 1) for k in range(classes)]


def slow_gradient(network: nn.Module, start: Tensor, y: int) -> Tensor:
    """∇ of −Σ y~ log p at one image."""
    z = start.clone().requires_grad_()
    log_p = network(z[None]).log_softmax(dim=1)[0]
    value = -sum(weight * log_p[k] for k, weight in enumerate(soft(y)))
    assert isinstance(value, Tensor)
    return torch.autograd.grad(value, z)[0]


def slow_images(method: FgsmMep, batch: Batch) -> Tensor:
    """x' of each image."""
    found = []
    for x, y, i in zip(batch.x, batch.y.tolist(), batch.index.tolist(), strict=True):
        start = x + method.delta[i]
        step = start + EPS * slow_gradient(method.model, start, y).sign()
        found.append(torch.max(torch.min(step, x + EPS), x - EPS).clamp(0, 1))
    return torch.stack(found)


@pytest.mark.parametrize("consistency", [0.0, 10.0])
def test_loss_is_the_formula(consistency: float) -> None:
    method, given = make(consistency=consistency)
    worlds.steps(method, given, 5)  # tables with a past
    batch = given.batch(1, 1)
    before, after = method.model(batch.x + method.delta[batch.index]), method.model(slow_images(method, batch))
    every = [reference.ce(after, torch.full_like(batch.y, k)) for k in range(3)]
    ce = [
        sum(w * v for w, v in zip(soft(y), row, strict=True))
        for y, row in zip(batch.y.tolist(), zip(*every, strict=True), strict=True)
    ]
    mse = reference.mean([v * v for v in (after - before).flatten().tolist()])
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean(ce) + consistency * mse, abs=1e-12)
    assert loss.terms["mse"].item() == pytest.approx(mse) and loss.terms["ce"].item() == pytest.approx(
        reference.mean(ce)
    )


def test_gradient_flows_through_both_passes() -> None:
    """x' is held fixed, as in all adversarial training; both logits are not."""
    method, given = make()
    batch = given.batch(0, 0)
    x_adv, start = slow_images(method, batch), batch.x + method.delta[batch.index]
    target = torch.tensor([soft(y) for y in batch.y.tolist()], dtype=torch.float64)

    def value() -> Tensor:
        before, after = method.model(start), method.model(x_adv)
        return F.cross_entropy(after, target) + 10 * F.mse_loss(after, before)

    expected = torch.autograd.grad(value(), list(method.model.parameters()))
    method.loss(batch).total.backward()
    for parameter, grad in zip(method.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)


def test_tables_follow_the_formula() -> None:
    """Three batches, image by image: m ← μ·m + g/‖g‖₁ over the batch, δ ← Π(δ + ε·sign m)."""
    method, given = make(worlds.data(augment=PadCropFlip(1, True)))
    delta, memory = method.delta.clone(), method.memory.clone()
    for step in range(3):
        batch = given.batch(0, step)
        method.clock.step = step
        grads = [
            slow_gradient(method.model, x + delta[i], int(y))
            for x, y, i in zip(batch.x, batch.y, batch.index, strict=True)
        ]
        length = sum(float(grad.abs().sum()) for grad in grads)
        for x, i, grad in zip(batch.x, batch.index.tolist(), grads, strict=True):
            memory[i] = 0.3 * memory[i] + grad / length
            ahead = (delta[i] + EPS * memory[i].sign()).clamp(-EPS, EPS)
            delta[i] = (x + ahead).clamp(0, 1) - x
        method.loss(batch)
        method.after_update(batch)
        torch.testing.assert_close(method.memory, memory, rtol=0, atol=1e-12)
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)


def test_rows_change_only_when_their_image_is_seen() -> None:
    method, given = make()
    before = method.delta.clone(), method.memory.clone()
    worlds.steps(method, given, 1)
    seen = torch.zeros(48, dtype=torch.bool)
    seen[given.batch(0, 0).index] = True
    assert torch.equal(method.delta[~seen], before[0][~seen]) and torch.equal(method.memory[~seen], before[1][~seen])
    assert (method.memory[seen] != 0).flatten(1).any(dim=1).all()


def test_without_memory_it_is_fgsm_from_a_corner() -> None:
    """λ = μ = 0 and new starts every epoch: CE~ at the projected step from ε·sign(noise)."""
    method, given = make(consistency=0.0, momentum=0.0, reset=0.0)
    for epoch in range(3):
        assert torch.equal(method.delta.abs(), torch.full_like(method.delta, EPS)) and not method.memory.any()
        corners = method.delta.clone()
        for step in range(given.steps):
            batch = given.batch(epoch, step)
            assert torch.equal(method.delta[batch.index], corners[batch.index])
            method.clock.epoch, method.clock.step = epoch, step
            every = F.cross_entropy(
                method.model(slow_images(method, batch)),
                torch.tensor([soft(y) for y in batch.y.tolist()], dtype=torch.float64),
            )
            loss = worlds.steps(method, given, 1, first=epoch * given.steps + step)
            assert loss[0] == pytest.approx(every.item(), abs=1e-12)


def test_starts_are_drawn_anew_at_the_shares_of_training_and_only_there() -> None:
    """40 of 110 epochs: of 11 epochs, after the 4th and the 8th."""
    method, given = make(epochs=11)
    fresh = []
    for epoch in range(11):
        fresh.append(not method.memory.any())
        worlds.steps(method, given, given.steps, epochs=11, first=epoch * given.steps)
    assert [epoch for epoch, new in enumerate(fresh) if new] == [0, 4, 8]


def test_starts_differ_between_resets_and_are_the_seeds() -> None:
    method, _ = make()
    first = method.delta.clone()
    method._draw(0, 4)
    assert not torch.equal(method.delta, first)
    again, other = make()[0], make(worlds.data(seed=1))[0]
    assert torch.equal(again.delta, first) and not torch.equal(other.delta, first)


@pytest.mark.parametrize("first", [3, 4, 6])
def test_resume_is_exact_across_a_reset(first: int) -> None:
    straight, given = make(reset=0.25)
    worlds.steps(straight, given, 9)
    before, _ = make(reset=0.25)
    worlds.steps(before, given, first)
    after, _ = make(reset=0.25)
    after.load_state_dict(worlds.snapshot(before))
    worlds.steps(after, given, 9 - first, first=first)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(after))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_and_starts_are_legal_in_every_norm(norm: str) -> None:
    method, given = make(norm=norm)
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for position in range(6):
        epoch, step = divmod(position, given.steps)
        x = given.batch(epoch, step).x
        assert (method.attack.ball.norm(method.delta) <= EPS + 1e-12).all()
        worlds.steps(method, given, 1, first=position)
        x_adv = seen[-1]
        assert (method.attack.ball.norm(x_adv - x) <= EPS + 1e-12).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_loss_repeats_and_only_commit_writes() -> None:
    method, given = make()
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    first = method.loss(batch)
    grad = batch.aux["gradient"].clone()
    assert torch.equal(method.loss(batch).total, first.total) and torch.equal(batch.aux["gradient"], grad)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
    assert method.perturb(batch) is batch


def test_tables_cover_the_labelled_images_of_a_pool() -> None:
    method, given = make(worlds.data(labelled=0.5, extra=0.5))
    assert len(method.delta) == len(given.train) == 24
    worlds.steps(method, given, 4)
