"""FGSM-UAP, CUAP and FUAP: loss and universal perturbations against a loop over images; who chooses the group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.fgsm_at import FgsmAt
from atbench.methods.fgsm_uap import FgsmFuap, FgsmUap
from atbench.models import attack_mode
from tests.support import reference, worlds

EPS, RADIUS = 0.1, 0.125
KINDS = ("all", "class", "feature")


def make(kind: str = "all", given: TrainData | None = None, **options: Any) -> tuple[FgsmUap, TrainData]:
    given = given or worlds.data()
    attack = worlds.attack(norm=options.pop("norm", "linf"), eps=EPS, bn="train")
    network = options.pop("network", None) or worlds.cnn()
    if kind == "feature":
        method: FgsmUap = FgsmFuap(network, attack, **{"number": 5, **options})
    else:
        method = FgsmUap(network, attack, by_class=kind == "class", **options)
    worlds.start(method, given)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method.setup(given)
    method.risk.label_smoothing = method.attack_risk.label_smoothing = 0.4
    if isinstance(method, FgsmFuap):  # so that images of one batch are of several groups
        with torch.no_grad(), attack_mode(method, "eval"):
            h, scores = method._features(given.batch(0, 0).x).mean(dim=0), method.selector.scores
            scores.bias.copy_(-(scores.weight @ h))
    return method, given


def boxed(x: Tensor, point: Tensor) -> Tensor:
    return (x + (point - x).clamp(-EPS, EPS)).clamp(0, 1)


def slow_group(method: FgsmUap, x: Tensor, y: int) -> int:
    if isinstance(method, FgsmFuap):
        scores = method.selector.scores.weight @ method.model.features(x[None])[0] + method.selector.scores.bias  # type: ignore[operator]
        return max(range(5), key=scores.tolist().__getitem__)
    return y if method.by_class else 0


def slow(method: FgsmUap, batch: Batch) -> list[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """Group, start, gradient of CE + λ · MSE at it, x' and noisy image of each example, one at a time."""
    rows = []
    noise = EPS * method.rng().uniform(batch.x) if isinstance(method, FgsmFuap) else torch.zeros_like(batch.x)
    for x, y, eta in zip(batch.x, batch.y.tolist(), noise, strict=True):
        noisy = (x + eta).clamp(0, 1)
        group = slow_group(method, noisy, y)
        start = boxed(x, noisy + method.u[group]).detach().requires_grad_()
        logits = method.model(start[None])[0]
        log_p = logits.log_softmax(dim=0)
        grad = torch.autograd.grad(-(0.6 * log_p[y] + 0.4 * log_p.mean()), start, retain_graph=True)[0]
        x_adv = boxed(x, start.detach() + EPS * grad.sign())
        drift = (method.model(x_adv[None])[0] - logits).square().mean()
        follow = grad + method.consistency * torch.autograd.grad(drift, start)[0]
        rows.append((group, start.detach(), follow, x_adv, noisy))
    return rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("consistency", [0.0, 10.0])
def test_loss_is_the_formula(kind: str, consistency: float) -> None:
    method, given = make(kind, consistency=consistency)
    worlds.steps(method, given, 5)  # perturbations with a past
    batch = method.perturb(given.batch(1, 1))
    rows = slow(method, batch)
    before, after = (method.model(torch.stack([row[place] for row in rows])) for place in (1, 3))

    def smoothed(logits: Tensor) -> float:
        every = [reference.mean(reference.ce(logits, torch.full_like(batch.y, k))) for k in range(3)]
        return 0.6 * reference.mean(reference.ce(logits, batch.y)) + 0.4 * reference.mean(every)

    drift = reference.mean([v * v for v in (after - before).flatten().tolist()])
    expected = smoothed(after) + consistency * drift
    if isinstance(method, FgsmFuap):
        h = method.model.features(torch.stack([row[4] for row in rows]))  # type: ignore[operator]
        hidden = F.linear(h, method.selector.scores.weight, method.selector.scores.bias).clamp_min(0)
        expected += smoothed(F.linear(hidden, method.selector.classifier.weight, method.selector.classifier.bias))
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_perturbations_follow_the_formula_and_absent_groups_stay(kind: str) -> None:
    """Six batches, group by group; of the second half only one class is seen."""
    method, given = make(kind)
    u, m, absent = method.u.clone(), method.m.clone(), 0
    assert torch.equal(u.abs(), torch.full_like(u, RADIUS)) and len(u) == {"all": 1, "class": 3, "feature": 5}[kind]
    for step in range(6):
        method.clock.epoch, method.clock.step = divmod(step, given.steps)
        batch = given.batch(*divmod(step, given.steps))
        keep = batch.y == 1 if step > 2 else batch.y >= 0
        batch = method.perturb(Batch(batch.x[keep], batch.y[keep], batch.index[keep]))
        rows = slow(method, batch)
        length = sum(float(row[2].abs().sum()) for row in rows)
        for group in range(len(u)):
            own = [row[2] / length for row in rows if row[0] == group]
            absent += not own
            if own:
                m[group] = sum(own) / len(own) + 0.3 * m[group]
                u[group] = (u[group] + RADIUS * m[group].sign()).clamp(-RADIUS, RADIUS)
        method.loss(batch).total.backward()
        method.after_update(batch)
        torch.testing.assert_close(method.m, m, rtol=0, atol=1e-14)
        assert torch.equal(method.u, u)
        assert torch.isin(u, torch.tensor([-RADIUS, 0.0, RADIUS], dtype=u.dtype)).all()
    assert absent or kind == "all"
    assert kind == "all" or len({row[0] for row in slow(method, given.batch(0, 0))}) > 1


def test_both_passes_have_a_gradient_and_the_point_has_none() -> None:
    method, given = make("class")
    batch = method.perturb(given.batch(0, 0))
    rows = slow(method, batch)
    before, after = (method.model(torch.stack([row[place] for row in rows])) for place in (1, 3))
    value = F.cross_entropy(after, batch.y, label_smoothing=0.4) + 10 * F.mse_loss(after, before)
    expected = torch.autograd.grad(value, list(method.model.parameters()))
    method.loss(batch).total.backward()
    for parameter, grad in zip(method.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)


def test_with_one_class_cuap_is_uap_to_the_bit() -> None:
    method, given = make("all")
    other, _ = make("class")
    other.u, other.m = other.u[:1].clone(), other.m[:1].clone()
    other.u.copy_(method.u)
    relabelled = given.batch(0, 0)
    one = Batch(relabelled.x, torch.zeros_like(relabelled.y), relabelled.index)
    for each in (method, other):
        batch = each.perturb(one)
        each.loss(batch).total.backward()
        each.after_update(batch)
    assert torch.equal(method.u, other.u) and torch.equal(method.m, other.m)
    assert torch.equal(method.model.head.weight.grad, other.model.head.weight.grad)  # type: ignore[union-attr]


def test_without_perturbation_and_penalty_it_is_fgsm() -> None:
    given = worlds.data()
    method, _ = make(given=given, reach=0.0, consistency=0.0)
    method.risk.label_smoothing = method.attack_risk.label_smoothing = 0.0
    other = FgsmAt(worlds.cnn(), worlds.attack(start="zero", steps=1, step_size=EPS), clean=0.0)
    worlds.start(other, given)
    assert worlds.steps(method, given, 6) == pytest.approx(worlds.steps(other, given, 6), abs=1e-12)


def test_the_selector_learns_by_its_own_loss_alone() -> None:
    """No gradient from the head to the network or back; the group is chosen before its step."""
    method, given = make("feature")
    assert isinstance(method, FgsmFuap) and set(method.groups()) == {"model", "selector"}
    batch = method.perturb(given.batch(0, 0))
    assert len(batch.aux["group"].unique()) > 1
    loss = method.loss(batch)
    alone = F.cross_entropy(method.selector(batch.aux["features"]), batch.y, label_smoothing=0.4)
    parameters = list(method.selector.parameters())
    ours = torch.autograd.grad(loss.total, parameters, retain_graph=True)
    for a, b in zip(ours, torch.autograd.grad(alone, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)
    with torch.no_grad():
        method.selector.classifier.weight.mul_(3)
    grads = [torch.autograd.grad(method.loss(batch).total, list(method.model.parameters())) for _ in range(2)]
    again = torch.autograd.grad(loss.total, list(method.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(grads[0], again, strict=True))


@pytest.mark.parametrize(("kind", "count"), [("all", 2), ("class", 2), ("feature", 3)])
def test_forwards_in_train_mode(kind: str, count: int) -> None:
    method, given = make(kind, network=worlds.cnn(norm="batch"))
    method.loss(method.perturb(given.batch(0, 0)))
    assert method.model.stages[1][0].num_batches_tracked == count  # type: ignore[index,union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_and_perturbations_are_legal_in_every_norm(kind: str, norm: str) -> None:
    method, given = make(kind, norm=norm)
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for position in range(4):
        worlds.steps(method, given, 1, first=position)
        assert (method.attack.ball.norm(method.u) <= RADIUS + 1e-12).all()
        assert all(worlds.legal(method.attack, given.batch(0, position).x, x, EPS) for x in seen[-2:])


@pytest.mark.parametrize("kind", KINDS)
def test_only_after_update_writes(kind: str) -> None:
    method, given = make(kind)
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    first, second = method.perturb(batch), method.perturb(batch)
    assert torch.equal(method.loss(first).total, method.loss(second).total)
    assert worlds.same(before, worlds.snapshot(method))


def test_what_has_no_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features; .*model\.members=1"):
        FgsmFuap(nn.Flatten(), worlds.attack())
