"""Szegedy's pool: what it holds, what of it is renewed, what a batch draws of it, and training above a hidden layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.data import TrainData
from atbench.errors import ConfigError
from atbench.methods.standard import Standard
from atbench.methods.szegedy import Szegedy
from tests.support import worlds

LAYERS = pytest.mark.parametrize("layer", [None, 1], ids=["input", "hidden"])


def make(given: TrainData | None = None, **options: Any) -> tuple[Szegedy, TrainData]:
    given = given or worlds.data()
    method = Szegedy(worlds.cnn(), worlds.attack(), **{"steps": 6, "searches": 2, **options})
    method.setup(given)
    worlds.start(method, given)
    return method, given


def trained(count: int = 4, **options: Any) -> tuple[Szegedy, TrainData]:
    """A method after `count` steps, 4 to an epoch, that renew 6 of 24 slots each."""
    method, given = make(renewal=1.0, **options)
    worlds.steps(method, given, count)
    return method, given


def test_without_a_share_it_is_standard_training() -> None:
    given = worlds.data()
    ours, _ = make(given, share=0.0)
    plain = Standard(worlds.cnn(), worlds.attack())
    plain.setup(given)
    assert worlds.steps(ours, given, 5) == worlds.steps(plain, given, 5)
    assert worlds.same(dict(ours.model.state_dict()), dict(plain.model.state_dict()))


@LAYERS
def test_new_entries_were_misclassified_when_they_were_made(layer: int | None) -> None:
    method, given = trained(layer=layer)
    batch = method.perturb(given.batch(1, 0))
    found = batch.aux["labels"] >= 0
    made = batch.aux["made"][found]
    assert found.sum() > 3
    logits = method._above(made)
    assert (logits.argmax(dim=1) != batch.aux["labels"][found]).all()
    if layer is None:
        assert made.min() >= 0 and made.max() <= 1
    method.after_update(batch)
    slots = method._renewed()[: len(made)]
    assert torch.equal(method.pool[slots], made) and torch.equal(method.places[slots], batch.index[found])
    assert torch.equal(method.labels[slots], given.train.y[batch.index[found]])


def test_entries_are_nearest_images() -> None:
    """At the distance of a linear network's boundary."""
    given = worlds.data(worlds.source(classes=2, inset=0.3))
    method = Szegedy(worlds.linear(classes=2, scale=0.05), worlds.attack(), renewal=1.0, pool_size=1.0, searches=16)
    method.setup(given)
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    w = method.model.head.weight[1] - method.model.head.weight[0]
    logits = method.model(batch.x)
    far = ((logits[:, 1] - logits[:, 0]).abs() / w.norm()).detach()
    far = torch.where(logits.argmax(dim=1) == batch.aux["labels"], far, 0.0)
    assert (batch.aux["labels"] >= 0).all()
    distance = (batch.aux["made"] - batch.x).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, far, rtol=1e-2, atol=1e-3)


def test_a_part_of_the_pool_is_renewed() -> None:
    method, given = trained(8)
    assert (method.places >= 0).all()
    method.renewal = 0.25  # 6 of 24 slots an epoch, over 4 steps
    before = worlds.snapshot(method)
    touched = torch.zeros(24, dtype=torch.bool)
    for step in range(4):
        method.clock.epoch, method.clock.step = 2, step
        slots = method._renewed()
        assert len(slots) in (1, 2) and not touched[slots].any()
        touched[slots] = True
        method.after_update(method.perturb(given.batch(2, step)))
    assert int(touched.sum()) == 6
    assert torch.equal(method.pool[~touched], before["pool"][~touched])
    assert not torch.equal(method.pool[touched], before["pool"][touched])
    method.clock.epoch, method.clock.step = 3, 0
    later = method._renewed()
    method.clock.epoch = 2
    assert not torch.equal(later, method._renewed())  # a new order every epoch


@LAYERS
def test_loss_is_cross_entropy_over_clean_rows_and_the_pool(layer: int | None) -> None:
    method, given = trained(8, layer=layer, share=0.5)
    clean = given.batch(2, 0)
    batch = method.perturb(clean)
    rows, slots = batch.aux["rows"], batch.aux["slots"]
    assert int(rows.sum()) == 6
    values = []
    for i in range(12):
        h = method.pool[slots[i]][None] if rows[i] else method._below(clean.x[i : i + 1])
        y = given.train.y[method.places[slots[i]]] if rows[i] else clean.y[i]
        assert batch.y[i] == y
        values.append(F.cross_entropy(method._above(h), y[None]).item())
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(sum(values) / 12, abs=1e-12)
    assert loss.logits is not None and loss.logits.shape == (12, 3)


def test_the_pool_teaches_the_stages_above_alone() -> None:
    method, given = trained(8, layer=1)
    batch = method.perturb(given.batch(2, 0))
    rows = batch.aux["rows"]
    below = [p for stage in list(method.model.stages)[:2] for p in stage.parameters()]
    logits = method.loss(batch).logits
    assert logits is not None
    risk = F.cross_entropy(logits, batch.y, reduction="none")
    for grad in torch.autograd.grad(risk[rows].sum(), below, retain_graph=True):
        assert not grad.any()
    assert all(g.any() for g in torch.autograd.grad(risk[~rows].sum(), below))


def test_empty_slots_leave_their_rows_clean() -> None:
    method, given = make(share=0.9)
    clean = given.batch(0, 0)
    batch = method.perturb(clean)
    assert not batch.aux["rows"].any() and torch.equal(batch.y, clean.y)
    assert method.loss(batch).total.item() == F.cross_entropy(method.model(clean.x), clean.y).item()


def test_a_search_that_finds_nothing_keeps_the_entry() -> None:
    """A constant network is misled by no image, and is wrong for two classes of three already."""
    method, given = trained(8)
    before = worlds.snapshot(method)
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.zero_()
        method.model.head.bias[0] = 1.0
    batch = method.perturb(given.batch(2, 0))
    found = batch.aux["labels"] >= 0
    assert (batch.aux["labels"][found] != 0).all()
    method.after_update(batch)
    kept = method._renewed()[int(found.sum()) :]
    assert len(kept) and torch.equal(method.pool[kept], before["pool"][kept])


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, given = trained()
    before = worlds.snapshot(method)
    first, second = (method.perturb(given.batch(1, 0)) for _ in range(2))
    assert torch.equal(first.aux["made"], second.aux["made"])
    assert torch.equal(method.loss(first).total, method.loss(second).total)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.model.parameters())


@LAYERS
def test_resume_is_exact(layer: int | None) -> None:
    given = worlds.data()
    worlds.check_resume(lambda: make(given, layer=layer, renewal=1.0)[0], given)


@pytest.mark.parametrize("layer", [9, -9])
def test_a_stage_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match=r"method\.layer"):
        make(layer=layer)


def test_a_model_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.layer: 1 — .*stage"):
        Szegedy(torch.nn.Flatten(), worlds.attack(), layer=1)
