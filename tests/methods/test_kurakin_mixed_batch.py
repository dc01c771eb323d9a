"""Mixed batches: which rows are attacked and how far, what they weigh, and where they leave the label alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.kurakin_mixed_batch import KurakinMixedBatch
from atbench.methods.standard import Standard
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero"}


def make(given: TrainData, search: dict[str, Any] | None = None, **options: Any) -> KurakinMixedBatch:
    method = KurakinMixedBatch(worlds.cnn(), worlds.attack(**{**ONE_STEP, **(search or {})}), **options)
    method.setup(given)
    worlds.start(method, given)
    return method


def perturbed(search: dict[str, Any] | None = None, **options: Any) -> tuple[KurakinMixedBatch, Batch]:
    given = worlds.data(worlds.source(inset=0.2))
    method = make(given, search, **options)
    return method, method.perturb(given.batch(0, 0))


def gradient(method: KurakinMixedBatch, x: Tensor, target: Tensor) -> Tensor:
    """∇_x of log p_t, image by image."""
    rows = []
    for image, t in zip(x, target.tolist(), strict=True):
        image = image[None].clone().requires_grad_()
        value = method.model(image).log_softmax(dim=1)[0, t]
        rows.append(torch.autograd.grad(value, image)[0])
    return torch.cat(rows)


@pytest.mark.parametrize(("share", "k"), [(0.0, 0), (0.25, 3), (0.5, 6), (0.3, 3), (1.0, 12)])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_loss_is_the_formula(share: float, k: int, weight: float) -> None:
    method, batch = perturbed(share=share, weight=weight)
    moved = (batch.x_adv != batch.x).flatten(1).any(dim=1)
    assert int(moved.sum()) == k and torch.equal(moved, batch.aux["rows"])
    losses = reference.ce(method.model(batch.x_adv), batch.y)
    clean = math.fsum(value for value, hit in zip(losses, moved.tolist(), strict=True) if not hit)
    attacked = math.fsum(value for value, hit in zip(losses, moved.tolist(), strict=True) if hit)
    total = (clean + weight * attacked) / ((12 - k) + weight * k)
    assert method.loss(batch).total.item() == pytest.approx(total, abs=1e-12)


def test_equal_weights_are_the_plain_mean_over_the_mixture() -> None:
    method, batch = perturbed(weight=1.0)
    losses = reference.ce(method.model(batch.x_adv), batch.y)
    assert method.loss(batch).total.item() == pytest.approx(reference.mean(losses), abs=1e-12)


def test_nothing_attacked_is_standard_training_to_the_bit() -> None:
    given = worlds.data()
    method, standard = make(given, share=0.0), Standard(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(standard, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(standard))


def test_the_step_goes_towards_the_least_likely_class_and_as_far_as_each_image_drew() -> None:
    method, batch = perturbed()
    rows, x = batch.aux["rows"], batch.x
    least = method.model(x).argmin(dim=1)
    eps = 0.1 * method._strengths(x).view(-1, 1, 1, 1)
    expected = (x + eps * gradient(method, x, least).sign()).clamp(0, 1)
    torch.testing.assert_close(batch.x_adv[rows], expected[rows], rtol=0, atol=1e-15)
    assert torch.equal(batch.x_adv[~rows], x[~rows])


def test_a_small_step_raises_the_probability_of_the_least_likely_class() -> None:
    method, batch = perturbed({"eps": 1e-3, "step_size": 1e-3}, share=1.0)
    before, after = (method.model(x).softmax(dim=1) for x in (batch.x, batch.x_adv))
    least = before.argmin(dim=1, keepdim=True)
    assert bool((after.gather(1, least) > before.gather(1, least)).all())


def test_further_steps_keep_the_target_of_the_first() -> None:
    """Five long steps make the least likely class a likely one; a target looked up again would be another class."""
    method, batch = perturbed({"steps": 5, "eps": 0.4, "step_size": 0.1}, share=1.0)
    least = method.model(batch.x).argmin(dim=1)
    assert bool((method.model(batch.x_adv).argmin(dim=1) != least).any())
    strength, x_adv = method._strengths(batch.x).view(-1, 1, 1, 1), batch.x
    low, high = (batch.x - 0.4 * strength).clamp(min=0), (batch.x + 0.4 * strength).clamp(max=1)
    for _ in range(5):
        x_adv = (x_adv + 0.1 * strength * gradient(method, x_adv, least).sign()).clamp(low, high)
    torch.testing.assert_close(batch.x_adv, x_adv, rtol=0, atol=1e-14)


def test_the_true_label_may_be_climbed_instead() -> None:
    method, batch = perturbed(share=1.0, target="label")
    eps = 0.1 * method._strengths(batch.x).view(-1, 1, 1, 1)
    expected = (batch.x - eps * gradient(method, batch.x, batch.y).sign()).clamp(0, 1)
    torch.testing.assert_close(batch.x_adv, expected, rtol=0, atol=1e-15)


def test_a_random_target_is_each_wrong_class_in_turn_and_never_the_true_one() -> None:
    given = worlds.data(worlds.source(inset=0.2))
    method = make(given, share=1.0, target="random")
    seen = []
    for step in range(4):
        method.clock.step = step
        batch = method.perturb(given.batch(0, step))
        eps = 0.1 * method._strengths(batch.x).view(-1, 1, 1, 1)
        aims = []
        for shift in (1, 2):
            way = gradient(method, batch.x, (batch.y + shift) % 3).sign()
            expected = (batch.x + eps * way).clamp(0, 1)
            aims.append((batch.x_adv - expected).abs().flatten(1).amax(dim=1) < 1e-14)
        assert bool((aims[0] ^ aims[1]).all())
        seen.append(aims[0])
    assert 12 < int(torch.cat(seen).sum()) < 36


def test_radii_are_half_normal_and_cut_off() -> None:
    """σ = 8, at most 16: mean σ·√(2/π)·(1 − e⁻²)/erf(√2) = 5.78, and the distribution of |n| given |n| ≤ 2σ."""
    given = worlds.data()
    method = make(given)
    eps = 16 * method._strengths(torch.zeros(200_000, 1, 1, 1, dtype=torch.float64))
    assert float(eps.min()) >= 0 and float(eps.max()) <= 16
    assert float(eps.mean()) == pytest.approx(5.78, abs=0.03)
    for edge in (2.0, 5.0, 8.0, 12.0, 15.0):
        share = math.erf(edge / 8 / math.sqrt(2)) / math.erf(math.sqrt(2))
        assert float((eps <= edge).double().mean()) == pytest.approx(share, abs=0.005)
    rounded = method._strengths(torch.zeros(200_000, 1, 1, 1))
    assert rounded.dtype == torch.float32 and bool(rounded.isfinite().all()) and float(rounded.max()) <= 1


def test_every_image_draws_anew() -> None:
    method, _ = perturbed()
    x = torch.zeros(64, 1, 1, 1, dtype=torch.float64)
    first = method._strengths(x)
    assert len(first.unique()) == 64 and torch.equal(first, method._strengths(x))
    method.clock.step = 1
    assert not bool((first == method._strengths(x)).any())


def test_one_forward_normalises_the_mixture() -> None:
    """The running mean moves once, by the mean of the images in their order, clean and adversarial together."""
    given = worlds.data()
    method = make(given)
    method.model = worlds.cnn(norm="batch")
    method.attack.bn = "batch"
    batch = method.perturb(given.batch(0, 0))
    norm, stem = method.model.stages[1][0], method.model.stages[0]
    method.loss(batch)
    with torch.no_grad():
        mean = stem(method.model.normalise(batch.x_adv)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=0, atol=1e-12)


def test_training_may_begin_on_clean_images() -> None:
    given = worlds.data()
    method = make(given, delay=0.5)
    for epoch, floor, clean in ((0, 3.0, True), (1, 3.0, True), (2, 4.0, False)):
        method.clock.epoch = epoch
        batch = method.perturb(given.batch(epoch, 0))
        assert torch.equal(batch.x_adv, batch.x) is clean and method.forward_cost(1) == floor
        risk = reference.mean(reference.ce(method.model(batch.x), batch.y))
        assert (method.loss(batch).total.item() == pytest.approx(risk, abs=1e-12)) is clean


def test_contract() -> None:
    given = worlds.data(worlds.source(inset=0.2))
    method = make(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("target", ["least_likely", "label", "random"])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_two_processes_are_one(share: float, target: str) -> None:
    """0.3 of 12 rows is one of the first six and two of the others: the normaliser is the joint one."""
    worlds.check_ranks(lambda given: make(given, {"start": "uniform"}, share=share, target=target))


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.target: likely"):
        KurakinMixedBatch(worlds.cnn(), worlds.attack(), target="likely")
