"""TRS: similarity and smoothness against gradients by hand; the search; radius over epochs; who is perturbed."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.trs import Trs, squared_gradient
from atbench.models import Ensemble
from tests.support import reference, worlds

START, END = 0.02, 0.1


def make(same: bool = False, given: TrainData | None = None, **options: Any) -> tuple[Trs, TrainData]:
    given = given or worlds.data()
    networks = [worlds.cnn(seed=0 if same else seed, activation="softplus") for seed in range(3)]
    settings = {"eps_start": START, "eps_end": END, "smooth_steps": 3, **options}
    method = Trs(Ensemble(networks), worlds.attack(), **settings)
    worlds.start(method, given)
    return method, given


def perturbed(**options: Any) -> tuple[Trs, Batch]:
    method, given = make(**options)
    return method, method.perturb(given.batch(0, 0))


def gradient_of_mean_loss(member: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As the authors take it, (B, D)."""
    z = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(member(z), y), z)[0].flatten(1)


@pytest.mark.parametrize("adversarial", [False, True])
def test_loss_is_the_formula(adversarial: bool) -> None:
    method, batch = perturbed(similarity=3.0, smoothness=500.0, adversarial=adversarial)
    grads = [gradient_of_mean_loss(member, batch.x, batch.y) for member in method.members]
    cosines = [(a * b).sum(1).abs() / a.norm(dim=1) / b.norm(dim=1) for a, b in combinations(grads, 2)]
    near = [gradient_of_mean_loss(member, batch.aux["smooth"], batch.y) for member in method.members]
    smoothness = sum(2 * g.square().sum(1).mean().item() for g in near) / 3
    images = [batch.x, batch.x_adv] if adversarial else [batch.x]
    risk = sum(reference.mean(reference.ce(member(x), batch.y)) for x in images for member in method.members)
    expected = risk + 3 * sum(c.mean().item() for c in cosines) / 3 + 500 * smoothness
    assert method.loss(batch).total.item() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(batch.x_adv, batch.x) is not adversarial


@pytest.mark.parametrize("accumulate", [True, False])
def test_search_equals_a_slow_loop(accumulate: bool) -> None:
    method, given = make(accumulate=accumulate)
    method.clock.epoch = 2
    eps = START + (END - START) * 2 / 4
    batch, rows = given.batch(2, 0), torch.arange(12) % 2 == 1
    x, y, total = batch.x[rows], batch.y[rows], torch.zeros(6, 1, 8, 8, dtype=torch.float64)
    z = (batch.x + eps * method.rng("smooth").uniform(batch.x)).clamp(0, 1)[rows]
    for _ in range(3):
        z = z.detach().requires_grad_()
        length = sum(
            torch.autograd.grad(F.cross_entropy(member(z), y), z, create_graph=True)[0].square().sum()
            for member in method.members
        )
        assert isinstance(length, Tensor)
        (grad,) = torch.autograd.grad(length, z)
        total = total + grad if accumulate else grad
        z = (x + (z.detach() + eps / 3 * total.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    found = method.perturb(batch).aux["smooth"]
    torch.testing.assert_close(found[rows], z, rtol=0, atol=1e-12)
    assert torch.equal(found[~rows], batch.x[~rows])


def test_search_finds_longer_gradients() -> None:
    method, batch = perturbed(smooth_steps=6)
    rows = torch.arange(12) % 2 == 1

    def length(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.stack([squared_gradient(member, x, batch.y) for member in method.members]).mean(dim=0).detach()

    assert (length(batch.aux["smooth"]) > length(batch.x))[rows].all()


def test_radius_grows_by_epoch_and_does_not_reach_its_end() -> None:
    method, _ = make()
    method.clock.epochs = 120
    method.eps_start, method.eps_end = 0.01, 0.03
    radii = []
    for method.clock.epoch in (0, 60, 119):
        for method.clock.step in (0, 1):
            radii.append(method.eps)
    assert radii == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.0298333333, 0.0298333333])


def test_without_radius_images_stay() -> None:
    _, batch = perturbed(eps_start=0.0, eps_end=0.0)
    assert torch.equal(batch.aux["smooth"], batch.x)


def test_members_that_are_alike_are_fully_similar() -> None:
    method, batch = perturbed(same=True)
    assert method.loss(batch).terms["similarity"].item() == pytest.approx(1, abs=1e-12)


def test_smoothness_of_a_linear_network_in_closed_form() -> None:
    """‖Wᵀ(p − e_y)‖²."""
    network = worlds.linear()
    x, y = worlds.middle()
    residual = network(x).softmax(dim=1) - F.one_hot(y, 3)
    expected = (residual @ network.head.weight).square().sum(dim=1)
    torch.testing.assert_close(squared_gradient(network, x.requires_grad_(), y), expected, rtol=1e-12, atol=0)


def test_gradients_are_differentiated_again() -> None:
    method, batch = perturbed(smoothness=500.0)
    exact, numeric = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(numeric, rel=1e-5)


def test_without_penalties_members_learn_alone() -> None:
    method, batch = perturbed(similarity=0.0, smoothness=0.0)
    expected = sum(reference.mean(reference.ce(member(batch.x), batch.y)) for member in method.members)
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, given = make(adversarial=True)
    worlds.check_pure(method, given.batch(0, 0))
    assert set(method.fixed_steps()) == {"attack", "method.smooth_steps"}
    assert set(make()[0].fixed_steps()) == {"method.smooth_steps"}


def test_two_processes_equal_one() -> None:
    """B is the joint batch's, and so are the rows that are perturbed."""
    worlds.check_ranks(lambda given: make(given=given, adversarial=True, smoothness=500.0)[0])


def test_one_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.members: 1"):
        Trs(worlds.cnn(), worlds.attack(), START, END)
