"""FGSM-PCO: its mixture and loss against a loop over single images, the gradient through c, starts that are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, PadCropFlip, TrainData
from atbench.methods.fgsm_pco import FgsmPco
from atbench.models import Network
from tests.support import reference, worlds

EPS = 0.1


def make(given: TrainData | None = None, model: Network | None = None, **options: Any) -> tuple[FgsmPco, TrainData]:
    given = given or worlds.data()
    norm = options.pop("norm", "linf")
    method = FgsmPco(model or worlds.cnn(), worlds.attack(norm=norm, eps=EPS), **options)
    method.setup(given)
    worlds.start(method, given)
    return method, given


def soft(y: int) -> Tensor:
    return torch.tensor([0.6 if k == y else 0.2 for k in range(3)], dtype=torch.float64)


def slow(method: FgsmPco, batch: Batch, smoothing: float = 0.0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """x + δ, x̃ and x + δ' of each image; x̃ with its graph, which leads through c to the weights."""
    found = []
    for x, y, i in zip(batch.x, batch.y.tolist(), batch.index.tolist(), strict=True):
        start = (x + method.delta[i]).requires_grad_()
        z = method.model(start[None])[0]
        label = (1 - smoothing) * soft(y) + smoothing / 3
        grad = torch.autograd.grad(-(label * z.log_softmax(dim=0)).sum(), start, retain_graph=True)[0]
        moved = torch.max(torch.min(start.detach() + EPS * grad.sign(), x + EPS), x - EPS).clamp(0, 1)
        c = 1 - z.softmax(dim=0)[y]
        found.append((start.detach(), c * start.detach() + (1 - c) * (x + method.beta * (moved - x)), moved))
    return found


def slow_loss(method: FgsmPco, batch: Batch) -> tuple[Tensor, float]:
    """The loss, and the difference of the two distances."""
    risks, first, second = [], [], []
    for (start, mixed, moved), y in zip(slow(method, batch), batch.y.tolist(), strict=True):
        before, middle, after = (method.model(image[None])[0] for image in (start, mixed, moved))
        risks.append(-(soft(y) * middle.log_softmax(dim=0)).sum())
        first.append((after - before).square().mean())
        second.append((after - middle).square().mean())
    drift = torch.stack(first).mean() - torch.stack(second).mean()
    return torch.stack(risks).mean() + method.consistency * drift.abs(), drift.item()


@pytest.mark.parametrize("consistency", [0.0, 10.0])
def test_loss_and_gradient_are_the_formula(consistency: float) -> None:
    signs = set()
    for beta in (1.5, 6.0, -0.5):  # of which the last makes the other distance the larger one
        method, given = make(consistency=consistency)
        worlds.steps(method, given, 5)  # starts with a past
        method.beta, batch = beta, given.batch(1, 1)
        expected, drift = slow_loss(method, batch)
        signs.add(drift > 0)
        loss = method.loss(batch)
        assert loss.total.item() == pytest.approx(expected.item(), abs=1e-12)
        assert loss.terms["drift"].item() == pytest.approx(abs(drift), abs=1e-12)
        parameters = list(method.model.parameters())
        wanted = torch.autograd.grad(expected, parameters)
        for a, b in zip(torch.autograd.grad(loss.total, parameters), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert signs == {True, False}


def test_the_slope_has_the_way_through_the_confidence() -> None:
    """With x + δ, δ' and p_y as they are, finite differences see c move."""
    method, given = make()
    batch = given.batch(0, 0)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total, h=1e-7)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_absolute_value_is_that_of_the_joint_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    method, given = make()
    batch = given.batch(0, 0)
    own = method.loss(batch).terms["drift"]
    monkeypatch.setattr(method, "gather", lambda rows: torch.cat([rows, torch.full_like(rows, -1e3)]))
    assert method.loss(batch).terms["drift"] == -own, "the part of a process that is alone on its side"


def seen(method: FgsmPco, batch: Batch) -> list[Tensor]:
    inputs: list[Tensor] = []
    handle = method.model.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().clone()))
    method.loss(batch)
    handle.remove()
    return inputs


@pytest.mark.parametrize("smooth", [False, True])
def test_passes_are_in_the_authors_order(smooth: bool) -> None:
    """x + δ, x̃, x + δ', the search on the smoothed labels smoothed again where that is asked for."""
    method, given = make()
    method.risk.label_smoothing, method.attack_risk.label_smoothing = 0.9, 0.9 * smooth
    batch = given.batch(0, 0)
    expected = zip(*slow(method, batch, 0.9 if smooth else 0.0), strict=True)
    for found, wanted in zip(seen(method, batch), expected, strict=True):
        torch.testing.assert_close(found, torch.stack(wanted).detach(), rtol=0, atol=1e-12)


def test_sure_images_are_seen_further_away_and_others_where_they_were() -> None:
    """A network that is as sure as can be: p_y is 1 or 0, x̃ one of both ends, and without the first no drift."""
    method, given = make(model=worlds.linear(scale=1e5))
    batch = given.batch(0, 0)
    start, mixed, moved = seen(method, batch)
    right = method.model(start).argmax(dim=1) == batch.y
    assert right.any() and not right.all()
    torch.testing.assert_close(mixed[right], (batch.x + 1.5 * (moved - batch.x))[right], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed[~right], start[~right], rtol=0, atol=1e-12)
    wrong = replace(batch, y=(method.model(start).argmax(dim=1) + 1) % 3)
    assert method.loss(wrong).terms["drift"] == 0


def test_starts_are_corners_and_then_the_last_step() -> None:
    method, given = make(worlds.data(augment=PadCropFlip(1, True)))
    assert torch.equal(method.delta.abs(), torch.full_like(method.delta, EPS))
    delta = method.delta.clone()
    for position in range(2 * given.steps):  # twice over the images: never drawn anew
        epoch, step = divmod(position, given.steps)
        batch = given.batch(epoch, step)
        assert torch.equal(method.delta, delta)
        for (_, _, moved), x, i in zip(slow(method, batch), batch.x, batch.index.tolist(), strict=True):
            delta[i] = moved - x
        worlds.steps(method, given, 1, first=position)
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)
        delta = method.delta.clone()
    again, other = make()[0], make(worlds.data(seed=1))[0]
    assert torch.equal(again.delta, make()[0].delta) and not torch.equal(again.delta, other.delta)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_remembered_is_legal_in_every_norm(norm: str) -> None:
    method, given = make(norm=norm)
    for position in range(6):
        batch = given.batch(*divmod(position, given.steps))
        worlds.steps(method, given, 1, first=position)
        delta = method.delta[batch.index]
        assert worlds.legal(method.attack, batch.x, batch.x + delta, EPS)


def test_loss_repeats_and_only_the_update_writes() -> None:
    method, given = make()
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
    assert method.perturb(batch) is batch
    worlds.check_resume(lambda: make()[0], given)
