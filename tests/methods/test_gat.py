"""GAT and NuAT: what guides the attack, at which steps, and the distance between clean and adversarial outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch
from atbench.methods.gat import Gat, GuidedMethod
from atbench.methods.nuat import Nuat
from atbench.methods.standard import Standard
from atbench.models.residual import ResNet
from tests.support import nets, reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "corner"}
METHODS: list[type[GuidedMethod]] = [Gat, Nuat]


def make(kind: type[GuidedMethod], network: nn.Module | None = None, **options: Any) -> tuple[Any, Batch]:
    """A method in the second epoch of four, at an odd step, where D counts in both."""
    given = worlds.data()
    method: Any = kind(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    method.clock.epoch, method.clock.step = 1, 1
    return method, given.batch(1, 1)


def slow_distance(kind: type[GuidedMethod], logits: Tensor, clean: Tensor) -> Tensor:
    """D of the batch: by sums over classes, or by the eigenvalues of the K × K matrix DᵀD."""
    if kind is Gat:
        p, q = (z.exp() / z.exp().sum(dim=1, keepdim=True) for z in (logits, clean))
        return sum(((p[:, k] - q[:, k]) ** 2).mean() for k in range(p.shape[1]))  # type: ignore[return-value]
    d = logits - clean
    return torch.linalg.eigvalsh(d.T @ d).clamp_min(0).sqrt().sum() / len(d)


@pytest.mark.parametrize("kind", METHODS)
def test_loss_is_the_formula(kind: type[GuidedMethod]) -> None:
    method, batch = make(kind)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce = reference.mean(reference.ce(clean, batch.y))
    distance = slow_distance(kind, adversarial, clean).item()
    assert distance > 1e-6
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + method.current_weight * distance, abs=1e-10)
    assert loss.terms["ce"].item() == pytest.approx(ce) and torch.equal(loss.logits, adversarial)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("alternate", [True, False])
@pytest.mark.parametrize("kind", METHODS)
def test_the_attack_climbs_the_distance_at_every_second_step(
    kind: type[GuidedMethod], alternate: bool, step: int
) -> None:
    """From a corner of half the ball, one step, the whole batch's D in it: alone its rows would point elsewhere."""
    method, batch = make(kind, weight=50.0, noise=0.5, alternate=alternate)
    method.clock.step = step
    start = batch.x + 0.05 * method.rng().uniform(batch.x).sign()
    x = start.clamp(0, 1).requires_grad_()
    logits = method.model(x)
    objective = F.cross_entropy(logits, batch.y)
    if step or not alternate:
        objective = objective + method.current_weight * slow_distance(kind, logits, method.model(batch.x).detach())
    slope = torch.autograd.grad(objective, x)[0]
    other = torch.autograd.grad(F.cross_entropy(method.model(x), batch.y), x)[0]
    assert (slope.sign() != other.sign()).any() == bool(step or not alternate)
    ahead = (x.detach() + 0.1 * slope.sign()).clamp(0, 1)
    expected = (batch.x + (ahead - batch.x).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-14)


def test_the_weight_of_gat_grows_once() -> None:
    method, _ = make(Gat)
    method.clock.epochs, method.clock.steps, method.clock.step, weights = 100, 7, 0, []
    for epoch in (0, 85, 86, 99):
        method.clock.epoch = epoch
        weights.append(method.current_weight)
    assert weights == [10.0, 10.0, 40.0, 40.0]


def test_the_weight_of_nuat_rises_by_epoch() -> None:
    """+= 4.5/90 behind each of the first 90 epochs: 0 in the first, whose steps all have one weight."""
    method, _ = make(Nuat)
    method.clock.epochs, method.clock.steps, weights = 100, 7, []
    for epoch, step in ((0, 6), (1, 0), (1, 6), (45, 3), (90, 0), (99, 6)):
        method.clock.epoch, method.clock.step = epoch, step
        weights.append(method.current_weight)
    assert weights == pytest.approx([0, 0.05, 0.05, 2.25, 4.5, 4.5], rel=1e-12)


@pytest.mark.parametrize("kind", METHODS)
def test_without_its_weight_it_is_clean_training_to_the_bit(kind: type[GuidedMethod]) -> None:
    given, method = worlds.data(), kind(worlds.cnn(), worlds.attack(**ONE_STEP), weight=0.0)  # type: ignore[call-arg]
    other = Standard(worlds.cnn(), worlds.attack(**ONE_STEP))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_the_nuclear_norm_of_a_single_direction_is_the_frobenius_norm() -> None:
    """And of one image its L2 norm; without a change it is 0, with a finite gradient."""
    method, _ = make(Nuat)
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn((6, 3), generator=rng, dtype=torch.float64)
    shift = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert method.distance(clean + shift, clean).mean().item() == pytest.approx(shift.norm().item() / 6, rel=1e-12)
    assert method.distance(clean[:1] + shift[:1], clean[:1]).item() == pytest.approx(shift[0].norm().item(), rel=1e-12)
    same = clean.clone().requires_grad_()
    assert method.distance(same, clean).sum() == 0
    assert torch.autograd.grad(method.distance(same, clean).sum(), same)[0].isfinite().all()


def test_at_the_image_itself_the_distance_of_gat_vanishes() -> None:
    method, batch = make(Gat)
    loss = method.loss(batch.with_adv(batch.x))
    assert loss.terms["distance"] == 0
    plain = torch.autograd.grad(F.cross_entropy(method.model(batch.x), batch.y), list(method.parameters()))
    for ours, theirs in zip(torch.autograd.grad(loss.total, list(method.parameters())), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", METHODS)
def test_statistics_are_those_of_the_adversarial_and_then_of_the_clean_batch(kind: type[GuidedMethod]) -> None:
    method, batch = make(kind, worlds.cnn(norm="batch"))
    before, twin = worlds.snapshot(method), copy.deepcopy(method.model)
    seen: list[tuple[bool, bool]] = []
    norm = method.model.stages[1][0]
    norm.register_forward_pre_hook(lambda layer, inputs: seen.append((layer.training, layer.track_running_stats)))
    batch = method.perturb(batch)
    assert seen == [(True, False), (False, True)], "the clean outputs' own statistics, and an attack in eval mode"
    assert worlds.same(before, worlds.snapshot(method))
    method.loss(batch)
    for x in (batch.x_adv, batch.x):
        twin(x)
    assert worlds.same(dict(method.model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("kind", METHODS)
def test_contract(kind: type[GuidedMethod]) -> None:
    method, batch = make(kind)
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: Gat(worlds.cnn(), worlds.attack(**ONE_STEP), alternate=False))


def test_the_authors_network_rectifies_the_branch_before_the_sum() -> None:
    """As many parameters as without, and each block adds relu(r(x)) to its shortcut."""
    plain, rectified = (nets.build(ResNet, (3, 8, 8), blocks=(1, 1), width=8, rectified=on) for on in (False, True))
    assert nets.count(plain) == nets.count(rectified)
    assert not torch.equal(plain(nets.images(8).float()), rectified(nets.images(8).float()))
    ours, theirs = rectified.stages.layer2_0, plain.stages.layer2_0
    z = torch.randn((2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    x = theirs.enter(z)
    torch.testing.assert_close(ours(z), theirs.residual(x).relu() + theirs.shortcut(x))
