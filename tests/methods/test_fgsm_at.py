"""FGSM training: the worst point of a linear model in closed form, and its limits, clean training and PGD-AT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods import Method
from atbench.methods.fgsm_at import FgsmAt
from atbench.methods.pgd_at import PgdAt
from atbench.methods.standard import Standard
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero"}


def make(clean: float = 0.5, target: str = "label", **options: Any) -> tuple[FgsmAt, Batch]:
    given, method = worlds.data(), FgsmAt(worlds.cnn(**options), worlds.attack(**ONE_STEP), clean, target)
    worlds.start(method, given)
    return method, given.batch(0, 0)


@pytest.mark.parametrize("clean", [0.3, 0.5, 1.0])
def test_loss_is_the_formula(clean: float) -> None:
    method, batch = make(clean)
    batch = method.perturb(batch)
    ce = reference.mean(reference.ce(method.model(batch.x), batch.y))
    adv = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(clean * ce + (1 - clean) * adv, abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["adv"].item() == pytest.approx(adv) and adv > ce


def test_on_a_linear_model_the_adversarial_loss_has_the_closed_form() -> None:
    """log(1 + exp(−(y·(w·x + b) − ε‖w‖₁))), y = ±1, away from the box."""
    given = worlds.data(worlds.source(classes=2, inset=0.2))
    network = worlds.linear(classes=2, scale=0.1)
    method = FgsmAt(network, worlds.attack(**ONE_STEP))
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    w = (network.head.weight[1] - network.head.weight[0]).tolist()
    b = (network.head.bias[1] - network.head.bias[0]).item()
    losses = []
    for x, y in zip(batch.x.flatten(1).tolist(), batch.y.tolist(), strict=True):
        score = b + math.fsum(v * pixel for v, pixel in zip(w, x, strict=True))
        losses.append(math.log1p(math.exp(-((2 * y - 1) * score - 0.1 * math.fsum(map(abs, w))))))
    assert method.loss(batch).terms["adv"].item() == pytest.approx(reference.mean(losses), abs=1e-12)


@pytest.mark.parametrize("target", ["label", "prediction"])
def test_the_step_climbs_the_loss_of_its_target(target: str) -> None:
    """Of a wrongly classified image the prediction's loss rises, whatever becomes of the label's."""
    method, batch = make(target=target)
    x = batch.x.clone().requires_grad_()
    logits = method.model(x)
    predicted = logits.argmax(dim=1)
    assert (predicted != batch.y).any(), "nothing would tell one target from the other"
    label = batch.y if target == "label" else predicted
    slope = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label, reduction="sum"), x)[0]
    expected = (batch.x + 0.1 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-14)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.target"):
        make(target="random")


@pytest.mark.parametrize(("clean", "limit"), [(1.0, Standard), (0.0, PgdAt)])
def test_its_limits_are_other_methods_to_the_bit(clean: float, limit: type[Method]) -> None:
    given, method = worlds.data(), FgsmAt(worlds.cnn(), worlds.attack(**ONE_STEP), clean)
    other = limit(worlds.cnn(), worlds.attack(**ONE_STEP))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_without_its_clean_half_no_clean_image_moves_the_running_statistics() -> None:
    given = worlds.data()
    plain = FgsmAt(worlds.cnn(norm="batch"), worlds.attack(**ONE_STEP), clean=0.0)
    other = PgdAt(worlds.cnn(norm="batch"), worlds.attack(**ONE_STEP))
    assert worlds.steps(plain, given, 4) == worlds.steps(other, given, 4)
    assert worlds.same(worlds.snapshot(plain), worlds.snapshot(other))
    assert plain.forward_cost(1) == other.forward_cost(1)


def test_clean_and_adversarial_images_have_statistics_of_their_own() -> None:
    """Each forward is normalised by its own batch, and the running statistics see both, the clean one first."""
    method, batch = make(norm="batch")
    batch = method.perturb(batch)
    norm = method.model.stages[1][0]
    stem = method.model.stages[0]
    with torch.no_grad():
        means = [stem(method.model.normalise(x)).mean((0, 2, 3)) for x in (batch.x, batch.x_adv)]
    method.loss(batch)
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * means[0] + 0.1 * means[1], rtol=0, atol=1e-12)


def test_the_attack_is_a_constant_of_the_update() -> None:
    method, batch = make()
    batch = method.perturb(batch)
    assert not batch.x_adv.requires_grad
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_label_smoothing_is_of_both_losses_and_not_of_the_attack() -> None:
    method, batch = make()
    plain = method.perturb(batch)
    method.risk.label_smoothing = 0.3
    assert torch.equal(method.perturb(batch).x_adv, plain.x_adv)
    smooth = []
    for logits in (method.model(plain.x), method.model(plain.x_adv)):
        every = [reference.mean(reference.ce(logits, torch.full_like(plain.y, k))) for k in range(3)]
        smooth.append(0.7 * reference.mean(reference.ce(logits, plain.y)) + 0.1 * sum(every))
    assert method.loss(plain).total.item() == pytest.approx(sum(smooth) / 2, abs=1e-12)


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda given: FgsmAt(worlds.cnn(), worlds.attack(**ONE_STEP)))
