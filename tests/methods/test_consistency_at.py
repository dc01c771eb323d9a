"""Consistency-AT: two views searched and forwarded as one batch, a divergence of sharpened predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch, Cutout, PadCropFlip, TrainData
from atbench.methods.consistency_at import ConsistencyAt, jensen_shannon
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds
from tests.support.configs import resolved


def make(given: TrainData | None = None, norm: str = "none", **options: Any) -> tuple[ConsistencyAt, Batch]:
    given = given or worlds.data(augment=PadCropFlip(1, True))
    method = ConsistencyAt(worlds.cnn(norm=norm), worlds.attack(), **options)
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow_js(a: Tensor, b: Tensor, temperature: float) -> list[float]:
    values = []
    for z, w in zip(a.tolist(), b.tolist(), strict=True):
        p, q = ([math.exp(v) for v in reference.log_softmax([u / temperature for u in each])] for each in (z, w))
        total = 0.0
        for pk, qk in zip(p, q, strict=True):
            m = (pk + qk) / 2
            total += (pk * math.log(pk / m) + qk * math.log(qk / m)) / 2
        values.append(total)
    return values


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 0.5), (3.0, 0.5), (1.0, 2.0)])
def test_loss_is_the_formula(weight: float, temperature: float) -> None:
    method, batch = make(weight=weight, temperature=temperature)
    with torch.no_grad():
        method.model.head.weight *= 20
    batch = method.perturb(batch)
    first, second = method.model(batch.x_adv), method.model(batch.aux["other"])
    ce = reference.mean([*reference.ce(first, batch.y), *reference.ce(second, batch.y)])
    js = reference.mean(slow_js(first, second, temperature))
    loss = method.loss(batch)
    assert js > 1e-4 and loss.terms["js"].item() == pytest.approx(js, abs=1e-12)
    assert loss.total.item() == pytest.approx(ce + weight * js, abs=1e-12)
    assert loss.logits is not None and torch.equal(loss.logits.argmax(dim=1)[: len(batch)], first.argmax(dim=1))
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_the_divergence_is_symmetric_bounded_and_nothing_for_the_same() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(jensen_shannon(a, b), jensen_shannon(b, a), rtol=0, atol=1e-15)
    assert jensen_shannon(a, a).abs().max() < 1e-15 and jensen_shannon(a, b).min() > 1e-3
    sure = 200 * torch.eye(2)
    sure.requires_grad_()
    apart = jensen_shannon(sure, sure.flip(0))
    torch.testing.assert_close(apart, torch.full((2,), math.log(2)))
    assert torch.autograd.grad(apart.sum(), sure)[0].isfinite().all()


def test_identical_views_and_starts_are_pgd_at() -> None:
    method, batch = make(worlds.data(), weight=5.0)
    assert torch.equal(batch.views[0], batch.x), "without augmentation"
    batch = method.perturb(batch)
    batch = batch.with_adv(other=batch.x_adv)
    loss = method.loss(batch)
    assert loss.terms["js"].item() == pytest.approx(0, abs=1e-15)
    assert loss.total.item() == pytest.approx(PgdAt(method.model, method.attack).loss(batch).total.item(), abs=1e-14)


def test_both_views_are_searched_from_starts_of_their_own_in_eval_mode() -> None:
    method, batch = make(norm="batch")
    found = method.perturb(batch)
    method.eval()
    for v, (x, x_adv) in enumerate(((batch.x, found.x_adv), (batch.views[0], found.aux["other"]))):
        expected = (x + 0.1 * method.rng(f"start {v}").uniform(x)).clamp(0, 1)
        for _ in range(3):
            expected = expected.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(method.model(expected), batch.y), expected)
            expected = (expected.detach() + 0.04 * grad.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert (batch.x != batch.views[0]).any() and not torch.equal(
        method.rng("start 0").uniform(batch.x), method.rng("start 1").uniform(batch.x)
    )


def test_one_forward_of_both_views_gives_the_statistics() -> None:
    method, batch = make(norm="batch")
    norm = next(module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d))
    batch = method.perturb(batch)
    method.loss(batch)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize(("epoch", "further"), [(0, False), (1, False), (2, True), (3, True)])
def test_views_are_augmented_further_from_half_of_training_on(epoch: int, further: bool) -> None:
    """Behind the run's own augmentation, each with random numbers of its own."""
    cut = Cutout(4)
    method, batch = make(augment=[cut])
    method.clock.epoch = epoch
    (turn,) = method.inner_updates(batch)
    for v, (before, after) in enumerate(((batch.x, turn.batch.x), (batch.views[0], turn.batch.views[0]))):
        expected = cut(before, method.rng(f"view {v}"))[0] if further else before
        assert torch.equal(after, expected) and torch.equal(before, after) != further
    holes = [each == 0 for each in (turn.batch.x, turn.batch.views[0])]
    assert not further or not torch.equal(*holes)


def test_the_papers_recipe_augments_in_its_order() -> None:
    augment = resolved("experiment=paper/consistency_at").method.augment
    assert [part["_target_"].rpartition(".")[2] for part in augment] == ["AutoAugment", "Cutout"]
    assert resolved("method=consistency_at").method.augment == []


def test_contract() -> None:
    def options(given: TrainData) -> ConsistencyAt:
        return make(given, augment=[Cutout(2)], begin=0.0)[0]

    given = worlds.data(augment=PadCropFlip(1, True))
    method = options(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    assert worlds.legal(method.attack, batch.views[0], batch.aux["other"], 0.1)
    worlds.check_resume(lambda: options(given), given)
    worlds.check_ranks(options, augment=PadCropFlip(1, True))
