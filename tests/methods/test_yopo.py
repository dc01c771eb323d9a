"""YOPO-m-n: the Hamiltonian's identities, η as PGD's, and every gradient against backward passes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import Objective, cross_entropy
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.yopo import FIRST_LAYER_GRADIENTS, Yopo
from atbench.models import Ensemble
from atbench.training import World
from atbench.training.running_means import RunningMeans
from atbench.training.train_step import TrainStep
from tests.support import worlds


def make(
    m: int = 3, n: int = 2, layer: str = "hamiltonian", inset: float = 0.0, **changes: Any
) -> tuple[Yopo, TrainData]:
    given = worlds.data(worlds.source(inset=inset))
    method = Yopo(worlds.cnn(), worlds.attack(**changes), m, n, layer)
    worlds.start(method, given)
    return method, given


def run(method: Yopo, batch: Batch) -> list[Batch]:
    """All rounds of one batch, gradients left in the parameters; the batches as the loss saw them."""
    seen = []
    for number, turn in enumerate(method.inner_updates(batch)):
        method.clock.round = number
        method.loss(turn.batch).total.backward()
        assert turn.step == (number == (method.m if method.first_layer_grad != "full" else method.m - 1))
        seen.append(turn.batch)
    method.clock.round = 0
    return seen


def split(method: Yopo) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of f₀, and of the rest."""
    first = list(method.network.stages[0].parameters())
    return first, [p for p in method.network.parameters() if all(p is not q for q in first)]


def at_the_edges(batch: Batch) -> Batch:
    """The batch with a third of its pixels black and a third white."""
    tone = torch.randint(3, batch.x.shape, generator=torch.Generator().manual_seed(1))
    return replace(batch, x=torch.where(tone == 0, 0.0, torch.where(tone == 1, 1.0, batch.x)), aux={})


def slow(method: Yopo, batch: Batch, eta: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Algorithm 1 with backward passes of its own: mean gradients of f₀ and of the rest, and the last η."""
    network, attack, m = method.network, method.attack, method.m
    first, rest = split(method)
    ours, others = [torch.zeros_like(p) for p in first], [torch.zeros_like(p) for p in rest]

    def add(total: list[Tensor], grads: tuple[Tensor, ...]) -> None:
        for t, g in zip(total, grads, strict=True):
            t += g / m

    for _ in range(m):
        h = network.features(batch.x + eta, upto=0)
        value = F.cross_entropy(network.classify(network.continue_from(h, 1)), batch.y)
        p = -torch.autograd.grad(value, h, retain_graph=True)[0]
        add(others, torch.autograd.grad(value, rest, retain_graph=True))
        if method.first_layer_grad != "hamiltonian":
            add(ours, torch.autograd.grad(value, first))
        for _ in range(method.n):
            z = (batch.x + eta).clamp(0, 1).requires_grad_()
            slope = torch.autograd.grad((network.features(z, upto=0) * p).sum(), z)[0]
            slope = slope * ((batch.x + eta >= 0) & (batch.x + eta <= 1))  # what the clip passes, bounds included
            step = eta - attack.step_size * slope.sign()
            eta = (batch.x + step.clamp(-attack.eps, attack.eps)).clamp(0, 1) - batch.x
        if method.first_layer_grad != "full":
            hamiltonian = (network.features(batch.x + eta, upto=0) * p).sum()
            add(ours, torch.autograd.grad(-hamiltonian, first))
    return ours, others, eta


@pytest.mark.parametrize("layer", FIRST_LAYER_GRADIENTS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2), (2, 0)])
@pytest.mark.parametrize("edges", [False, True], ids=["grey", "black-and-white"])
def test_gradients_equal_separate_backward_passes(layer: str, m: int, n: int, edges: bool) -> None:
    """Where x + η leaves the pixels, as a start may, η stays; at their bounds it moves."""
    method, given = make(m, n, layer)
    batch = at_the_edges(given.batch(0, 0)) if edges else given.batch(0, 0)
    seen = run(method, batch)
    ours, others, eta = slow(method, batch, seen[0].x_adv - batch.x)
    for parameters, grads in zip(split(method), (ours, others), strict=True):
        for parameter, grad in zip(parameters, grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-13)
    if layer != "full":
        torch.testing.assert_close(seen[-1].x_adv - batch.x, eta, rtol=0, atol=1e-13)


def test_hamiltonian_identities_at_the_old_eta() -> None:
    """There −∂H/∂θ₀ is the exact ∂CE/∂θ₀, and ∂H/∂η the exact −∂CE/∂η."""
    method, given = make(m=1)
    batch = given.batch(0, 0)
    seen = run(method, batch)
    adjoint, first = seen[0].aux["adjoint"], split(method)[0]
    z = seen[0].x_adv.detach().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(method.model(z), batch.y), [*first, z])
    mine = torch.autograd.grad((method.network.features(z, upto=0) * adjoint).sum(), [*first, z])
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_one_cheap_step_eta_moves_like_pgd(norm: str) -> None:
    """Within the pixels: outside of them the clip of H stops what PGD's start does not."""
    method, given = make(m=4, n=1, inset=0.3, norm=norm, eps=0.3, step_size=0.1)
    batch = given.batch(0, 0)
    seen = run(method, batch)
    objective = Objective(method.model, cross_entropy, batch.y)
    for j, each in enumerate(seen):
        pgd = method.attack(objective, batch.x, start=seen[0].x_adv, steps=j) if j else seen[0].x_adv
        torch.testing.assert_close(each.x_adv, pgd, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_legal_after_the_first_pass(norm: str) -> None:
    """The start may leave the pixels, as the authors' does, but not the ball."""
    method, given = make(norm=norm, eps=0.3)
    batch = given.batch(0, 0)
    for j, each in enumerate(run(method, batch)):
        assert (method.attack.ball.norm(each.x_adv - batch.x) <= 0.3 + 1e-12).all()
        assert j == 0 or (each.x_adv.min() >= -1e-15 and each.x_adv.max() <= 1 + 1e-15)


def test_every_batch_starts_anew_and_at_random() -> None:
    method, given = make()
    starts = []
    for step in (0, 1, 0):
        method.clock.step = step
        batch = given.batch(0, 0)
        starts.append(next(iter(method.inner_updates(batch))).batch.x_adv - batch.x)
    assert torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[1])
    assert 0.09 < starts[0].abs().max() <= 0.1


def test_one_batch_is_one_update() -> None:
    """m rounds that accumulate: SGD moves by the mean gradient once."""
    method, given = make(m=3)
    batch, before = given.batch(0, 0), [p.detach().clone() for p in method.network.parameters()]
    run(method, batch)
    grads = [p.grad for p in method.network.parameters()]
    for p in method.network.parameters():
        p.grad = None
    worlds.steps(method, given, 1, lr=0.1)
    for p, old, grad in zip(method.network.parameters(), before, grads, strict=True):
        assert grad is not None
        torch.testing.assert_close(p.detach(), old - 0.1 * grad, rtol=0, atol=1e-15)


def test_full_passes_and_cheap_ones_are_counted() -> None:
    """m through the whole network; through the first stage m·n ascents more, and one for the last update of f₀."""
    method, given = make(m=3, n=2)
    whole, first = [], []
    method.network.head.register_forward_hook(lambda *_: whole.append(1))
    method.network.stages[0].register_forward_hook(lambda *_: first.append(1))
    run(method, given.batch(0, 0))
    assert len(whole) == 3 and len(first) == 3 + 3 * 2 + 1


@pytest.mark.parametrize("layer", FIRST_LAYER_GRADIENTS)
def test_the_recorded_loss_is_the_mean_cross_entropy_of_the_full_passes(layer: str) -> None:
    method, given = make(m=3, layer=layer)
    batch, means = given.batch(0, 0), RunningMeans()
    seen = run(method, batch)
    values = [F.cross_entropy(method.model(each.x_adv), batch.y).item() for each in seen[:3]]
    method.zero_grad()
    train_step = TrainStep(method, [], World(torch.device("cpu")), means)
    for round in method.inner_updates(batch):
        train_step(round)
    assert means.means(train_step.world)["loss"] == pytest.approx(sum(values) / 3, abs=1e-12)


def test_loss_repeats() -> None:
    method, given = make()
    turn = next(iter(method.inner_updates(given.batch(0, 0))))
    before = worlds.snapshot(method)
    assert torch.equal(method.loss(turn.batch).total, method.loss(turn.batch).total)
    assert worlds.same(before, worlds.snapshot(method))


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="first stage"):
        Yopo(Ensemble([worlds.cnn(), worlds.cnn()]), worlds.attack())
    with pytest.raises(ConfigError, match="first_layer_grad"):
        Yopo(worlds.cnn(), worlds.attack(), first_layer_grad="none")
