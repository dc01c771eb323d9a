"""GradAlign: the regularizer example by example, where it is zero, and what it is made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.grad_align import GradAlign
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero", "bn": "train"}


def make(weight: float = 0.7, edge: str = "full", **options: Any) -> tuple[GradAlign, Batch]:
    given = worlds.data()
    method = GradAlign(worlds.cnn(**options), worlds.attack(**ONE_STEP), weight, edge)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def gradient(method: GradAlign, x: Tensor, y: Tensor) -> list[float]:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(method.model(x), y), x)[0].flatten().tolist()


def cosine(a: list[float], b: list[float]) -> float:
    return math.fsum(u * v for u, v in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("weight", [0.2, 3.0])
def test_loss_is_the_formula_example_by_example(weight: float) -> None:
    method, batch = make(weight)
    eta = 0.1 * method.rng("eta").uniform(batch.x)
    expected = []
    for x, y, noise in zip(batch.x.split(1), batch.y.split(1), eta.split(1), strict=True):
        first = gradient(method, x, y)
        step = torch.tensor([(g > 0) - (g < 0) for g in first], dtype=x.dtype).view_as(x)
        ce = reference.ce(method.model((x + 0.1 * step).clamp(0, 1)), y)[0]
        expected.append(ce + weight * (1 - cosine(first, gradient(method, x + noise, y))))
    loss = method.loss(method.perturb(batch))
    assert loss.total.item() == pytest.approx(reference.mean(expected), rel=1e-10)
    assert 0 < loss.terms["misaligned"] < 2 and ((batch.x + eta) < 0).any(), "the second point is not clipped"


def test_gradients_of_a_linear_model_of_two_classes_are_parallel() -> None:
    given = worlds.data(worlds.source(classes=2))
    method = GradAlign(worlds.linear(classes=2, scale=0.1), worlds.attack(**ONE_STEP), 1.0)
    worlds.start(method, given)
    assert method.loss(method.perturb(given.batch(0, 0))).terms["misaligned"].item() == pytest.approx(0, abs=1e-12)


def test_without_weight_it_is_fgsm_training_to_the_bit() -> None:
    given, ends = worlds.data(), []
    for method in (
        GradAlign(worlds.cnn(norm="batch"), worlds.attack(**ONE_STEP), 0.0),
        PgdAt(worlds.cnn(norm="batch"), worlds.attack(**ONE_STEP)),
    ):
        losses = worlds.steps(method, given, 6)
        ends.append((losses, worlds.snapshot(method)))
    assert ends[0][0] == ends[1][0] and worlds.same(ends[0][1], ends[1][1])


def test_parameters_have_a_gradient_through_the_second_gradient_alone() -> None:
    """The first one is a constant: the slope is that of the loss at fixed x' and g₁."""
    method, batch = make(activation="softplus")
    batch = method.perturb(batch)
    assert not batch.aux["gradient"].requires_grad
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_an_example_with_a_zero_gradient_is_left_out() -> None:
    method, _ = make()
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn((2, 4, 9), generator=rng, dtype=torch.float64)
    first[1], second[2] = 0, 0
    second.requires_grad_()
    value = method.misalignment(first, second)
    kept = [1 - cosine(first[i].tolist(), second[i].tolist()) for i in (0, 3)]
    assert value.item() == pytest.approx(reference.mean(kept), abs=1e-12)
    assert torch.autograd.grad(value, second)[0].isfinite().all()
    assert method.misalignment(torch.zeros_like(first), second).item() == 0
    assert method.misalignment(5 * first, 3 * second).item() == pytest.approx(value.item(), abs=1e-12), "an angle"


def test_half_of_the_first_gradient_where_pixels_are_black_or_white() -> None:
    """As it comes through max(min(x, 1), 0), whose gradient is a half where both arguments are equal."""
    method, batch = make(edge="half")
    batch.x[:, :, :3], batch.x[:, :, 6:] = 0, 1
    point = batch.x.clone().requires_grad_()
    low, high = torch.zeros_like(point), torch.ones_like(point)
    clipped = torch.max(torch.min(point, high), low)
    expected = torch.autograd.grad(F.cross_entropy(method.model(clipped), batch.y, reduction="sum"), point)[0]
    found = method.perturb(batch)
    torch.testing.assert_close(found.aux["gradient"], expected, rtol=1e-12, atol=1e-15)
    whole, _ = make()
    assert torch.equal(whole.perturb(batch).x_adv, found.x_adv), "the step is the same"
    assert not torch.equal(whole.perturb(batch).aux["gradient"], found.aux["gradient"])
    with pytest.raises(ConfigError, match=r"method\.edge"):
        make(edge="none")


def test_statistics_see_the_three_forwards() -> None:
    method, batch = make(norm="batch")
    method.loss(method.perturb(batch))
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(int(norm.num_batches_tracked) == 3 for norm in norms)


def test_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    # The other process has as many examples, and none with a zero gradient.
    monkeypatch.setattr(GradAlign, "gather", lambda self, rows: torch.cat([rows] * self.clock.world))
    worlds.check_ranks(lambda given: GradAlign(worlds.cnn(), worlds.attack(**ONE_STEP)))
