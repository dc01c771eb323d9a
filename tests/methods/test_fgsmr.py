"""adv.FGSMR: the change of the input gradient along the FGSM step, and its gradient to the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.methods.fgsmr import Fgsmr
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero"}


def make(network: nn.Module | None = None, **options: Any) -> tuple[Fgsmr, Batch]:
    given = worlds.data(worlds.source(inset=0.25))
    method = Fgsmr(network or worlds.cnn(activation="softplus"), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∇ℓ of each example on its own, by one backward pass an example."""
    rows = []
    for image, label in zip(x, y, strict=True):
        point = image[None].clone().requires_grad_()
        rows.append(torch.autograd.grad(F.cross_entropy(network(point), label[None]), point)[0].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("reach", "power"), [(1.0, 2.0), (0.5, 2.0), (1.0, 1.0), (2.0, 3.0)])
def test_loss_is_the_formula(reach: float, power: float, detach: bool) -> None:
    method, batch = make(curvature=0.7, reach=reach, power=power, detach=detach)
    slope = slow_gradient(method.model, batch.x, batch.y)
    step = 0.1 * slope.sign().view_as(batch.x)
    batch = method.perturb(batch)
    torch.testing.assert_close(batch.x_adv, batch.x + step, rtol=0, atol=1e-14)
    change = slow_gradient(method.model, batch.x + reach * step, batch.y) - slope
    curvature = reference.mean([sum(v * v for v in row) ** (power / 2) for row in change.tolist()])
    ce = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    assert curvature > 1e-12
    loss = method.loss(batch)
    assert loss.terms["curvature"].item() == pytest.approx(curvature, rel=1e-9)
    assert loss.total.item() == pytest.approx(ce + 0.7 * curvature, abs=1e-12)


def test_both_gradients_reach_the_weights_unless_one_is_stopped() -> None:
    """By finite differences of the weights, with the gradient at the image held where it is if `detach`."""
    method, batch = make(curvature=1e3, detach=False)
    batch = method.perturb(batch)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)
    stopped, _ = make(method.model, curvature=1e3)
    held = slow_gradient(method.model, batch.x, batch.y)

    def total() -> Tensor:
        x = batch.x_adv.clone().requires_grad_()
        logits = method.model(x)
        far = torch.autograd.grad(F.cross_entropy(logits, batch.y, reduction="sum"), x, create_graph=True)[0]
        return F.cross_entropy(logits, batch.y) + 1e3 * (far.flatten(1) - held).square().sum(dim=1).mean()

    parameters = list(method.parameters())
    ours = torch.autograd.grad(stopped.loss(batch).total, parameters)
    for a, b in zip(ours, torch.autograd.grad(total(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_loss_without_curvature_has_no_penalty() -> None:
    """Two classes, far on the wrong side: the loss is the margin, which is linear."""
    network = worlds.linear(classes=2)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([500.0, 0.0]))
    method, batch = make(network)
    wrong = Batch(batch.x, torch.ones_like(batch.y), batch.index)
    assert method.loss(method.perturb(wrong)).terms["curvature"] < 1e-18


def test_of_a_quadratic_loss_it_is_the_hessian_times_the_step() -> None:
    """ℓ = log(1 + exp(−m)), m linear in x: the gradient changes by σ(−m')·w − σ(−m)·w."""
    method, batch = make(worlds.linear(classes=2, scale=0.05))
    batch = Batch(batch.x, batch.y % 2, batch.index)
    batch = method.perturb(batch)
    weight = method.model.head.weight  # type: ignore[union-attr]
    w = (weight[1] - weight[0]).detach()  # type: ignore[index]
    changes = []
    for x in (batch.x_adv, batch.x):
        z = method.model(x)
        changes.append(((1 - 2 * batch.y) * (z[:, 0] - z[:, 1])).neg().sigmoid().detach())
    expected = ((changes[0] - changes[1]).square() * w.square().sum()).mean()
    assert method.loss(batch).terms["curvature"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_penalty_of_a_batch_does_not_depend_on_its_size() -> None:
    method, batch = make()
    whole = method.perturb(batch)
    parts = [Batch(batch.x[rows], batch.y[rows], batch.index[rows]) for rows in (slice(0, 6), slice(6, 12))]
    halves = [method.loss(method.perturb(part)).terms["curvature"] for part in parts]
    torch.testing.assert_close(sum(halves) / 2, method.loss(whole).terms["curvature"], rtol=1e-12, atol=0)


def test_without_a_penalty_it_is_fgsm_training_to_the_bit() -> None:
    given = worlds.data()
    method, other = (kind(worlds.cnn(), worlds.attack(**ONE_STEP)) for kind in (Fgsmr, PgdAt))
    method.curvature = 0.0  # type: ignore[assignment]
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_contract() -> None:
    method, batch = make()
    worlds.check_pure(method, batch)

    def fresh(given: TrainData) -> Fgsmr:
        return Fgsmr(worlds.cnn(activation="softplus"), worlds.attack(**ONE_STEP), power=1.0)

    worlds.check_ranks(fresh)
