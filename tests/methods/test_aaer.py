"""AAER: which examples are abnormal, what their share weighs, and which terms have a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.aaer import Aaer
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.125, "start": "uniform", "bn": "train"}


def make(network: nn.Module | None = None, **options: Any) -> tuple[Aaer, Batch]:
    given = worlds.data()
    method = Aaer(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def mixed(method: Aaer, batch: Batch) -> Batch:
    """Perturbed, with logits at the start by which seven of twelve examples are abnormal."""
    found = method.perturb(batch)
    logits = method.model(found.x_adv).detach()
    rows = torch.arange(len(batch))
    shift = torch.where(rows % 5 < 3, -1.5 - 0.1 * rows, 0.7 + 0.2 * rows)
    before = logits.clone()
    before[rows, batch.y] += shift
    return found.with_adv(before=before)


@pytest.mark.parametrize("ce_term", ["code", "formula"])
@pytest.mark.parametrize("distance", [1.5, 0.0])
def test_loss_is_the_formula(distance: float, ce_term: str) -> None:
    method, batch = make(abnormal=0.8, ce=2.5, distance=distance, ce_term=ce_term)
    found = mixed(method, batch)
    logits, before = method.model(found.x_adv), found.aux["before"]
    after, first = reference.ce(logits, batch.y), reference.ce(before, batch.y)
    gaps = [
        sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
        for a, b in zip(logits.tolist(), before.tolist(), strict=True)
    ]
    bad = [i for i in range(12) if first[i] > after[i]]
    good = [i for i in range(12) if i not in bad]
    assert len(bad) == 8
    fall = reference.mean([first[i] - after[i] for i in bad])
    excess = reference.mean([gaps[i] for i in bad]) - reference.mean([gaps[i] for i in good])
    assert excess != 0
    expected = reference.mean(after) + 0.8 * len(bad) / 12 * (2.5 * fall + distance * max(excess, 0))
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert loss.terms["abnormal"].item() == pytest.approx(8 / 12)


def gradient(method: Aaer, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(method.loss(batch).total, list(method.parameters())))


def test_the_code_s_ce_term_changes_the_loss_and_no_gradient() -> None:
    method, batch = make()
    found = mixed(method, batch)
    small, grads = method.loss(found).total, gradient(method, found)
    method.ce = 50.0
    assert method.loss(found).total > small + 1
    assert all(torch.equal(a, b) for a, b in zip(grads, gradient(method, found), strict=True))
    method.ce_term = "formula"
    assert any(not torch.equal(a, b) for a, b in zip(grads, gradient(method, found), strict=True))
    with pytest.raises(ConfigError, match=r"method\.ce_term: paper .* code, formula"):
        make(ce_term="paper")


def test_only_the_distance_of_abnormal_examples_has_a_gradient() -> None:
    method, batch = make(distance=0.3)
    found = mixed(method, batch)
    found.aux["before"][:, 0] += torch.where(
        F.cross_entropy(found.aux["before"], batch.y, reduction="none") > 1.2, 3.0, 0.0
    )
    logits = method.model(found.x_adv)
    ce, before = F.cross_entropy(logits, batch.y, reduction="none"), found.aux["before"]
    bad = F.cross_entropy(before, batch.y, reduction="none") > ce
    gaps = (logits - before).square().sum(dim=1)
    assert gaps[bad].mean() > gaps[~bad].mean()
    total = ce.mean() + bad.double().mean() * 0.3 * gaps[bad].mean()
    expected = torch.autograd.grad(total, list(method.parameters()))
    for ours, theirs in zip(gradient(method, found), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", ["none", "all"])
def test_an_empty_set_leaves_the_cross_entropy(kind: str) -> None:
    method, batch = make()
    found = method.perturb(batch)
    before = method.model(found.x_adv).detach()
    before[torch.arange(12), batch.y] += 5.0 if kind == "none" else -5.0
    loss = method.loss(found.with_adv(before=before))
    assert loss.total.item() == loss.terms["ce"].item() and loss.terms["penalty"] == 0
    assert loss.terms["abnormal"].item() == (0.0 if kind == "none" else 1.0)


@pytest.mark.parametrize(("noise", "clip", "widest"), [(1.0, True, 0.1), (2.0, False, 0.325)])
def test_one_step_from_a_random_start(noise: float, clip: bool, widest: float) -> None:
    """N-FGSM's start is twice the ball, and what it finds is not projected; the box cuts both."""
    method, batch = make(noise=noise, clip=clip)
    start = (batch.x + noise * 0.1 * method.rng().uniform(batch.x)).clamp(0, 1)
    x = start.clone().requires_grad_()
    logits = method.model(x)
    grad = torch.autograd.grad(F.cross_entropy(logits, batch.y), x)[0]
    ahead = start + 0.125 * grad.sign()
    ahead = batch.x + (ahead - batch.x).clamp(-0.1, 0.1) if clip else ahead
    found = method.perturb(batch)
    torch.testing.assert_close(found.x_adv, ahead.clamp(0, 1), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.aux["before"], logits.detach(), rtol=0, atol=1e-14)
    assert not found.aux["before"].requires_grad
    assert 0.8 * widest < (found.x_adv - batch.x).abs().max() <= widest + 1e-12


def test_without_its_weight_it_is_fgsm_from_a_random_start_to_the_bit() -> None:
    given = worlds.data()
    method, other = Aaer(worlds.cnn(), worlds.attack(**ONE_STEP), 0.0), PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_two_forwards_in_train_mode() -> None:
    method, batch = make(worlds.cnn(norm="batch"))
    method.loss(method.perturb(batch))
    assert method.model.stages[1][0].num_batches_tracked == 2  # type: ignore[index,union-attr]


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
