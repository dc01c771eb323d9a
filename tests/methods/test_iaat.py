"""IAAT: radii settle just below the margins, whatever the batch order, and each visit is the paper's rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.data import Batch, TrainData
from atbench.methods.iaat import Iaat
from atbench.models import attack_mode
from tests.support import worlds

GAMMA, MIN_STEP = 0.02, 0.025


def make(given: TrainData, network: nn.Module, search: GradientAttack | None = None, **options: float) -> Iaat:
    method = Iaat(
        network, search or worlds.attack(), **{"gamma": GAMMA, "min_step": MIN_STEP, "warmup": 0.0, **options}
    )
    method.setup(given)
    worlds.start(method, given)
    return method


def slow_pgd(network: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """One image, from x itself."""
    x_adv, step = x.clone(), max(2 * eps / steps, MIN_STEP)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(network(x_adv), y), x_adv)
        moved = x_adv.detach() + step * grad.sign()
        x_adv = torch.max(torch.min(moved, x + eps), x - eps).clip(0, 1)
    return x_adv


def slow_visit(network: nn.Module, x: Tensor, y: Tensor, e: float, steps: int) -> tuple[float, Tensor]:
    """The new radius and the adversarial image of one example."""

    def holds(image: Tensor) -> bool:
        return int(network(image).argmax()) == int(y)

    if not holds(x):
        candidate = 0.0
    elif holds(slow_pgd(network, x, y, e + GAMMA, steps)):
        candidate = e + GAMMA
    elif holds(slow_pgd(network, x, y, e, steps)):
        candidate = e
    else:
        candidate = max(e - GAMMA, 0.0)
    new = 0.1 * candidate + 0.9 * e
    return new, slow_pgd(network, x, y, new, steps)


@pytest.mark.parametrize("world", [worlds.cnn, worlds.linear])
def test_a_visit_is_the_rule_of_the_paper(world: type) -> None:
    given = worlds.data()
    network = world()
    method = make(given, network, worlds.attack(start="zero"))
    if world is worlds.cnn:
        worlds.steps(method, given, 12, epochs=6, lr=0.5)
    rng = torch.Generator().manual_seed(1)
    method.eps.copy_(0.1 * torch.rand(len(method.eps), generator=rng, dtype=torch.float64))
    batch = method.perturb(given.batch(0, 0))
    losses = []
    for i in range(len(batch)):
        x, y = batch.x[i : i + 1], batch.y[i : i + 1]
        new, x_adv = slow_visit(network, x, y, float(method.eps[batch.index[i]]), steps=3)
        assert float(batch.aux["eps"][i]) == pytest.approx(new, abs=1e-14)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-12)
        losses.append(F.cross_entropy(network(x_adv), y))
    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, torch.stack(losses).mean(), rtol=0, atol=1e-12)
    method.after_update(batch)
    assert torch.equal(method.eps[batch.index], batch.aux["eps"])


def test_its_figures_are_mean_and_spread_over_all_examples() -> None:
    method = make(worlds.data(), worlds.linear())
    method.eps.copy_(torch.linspace(0, 0.1, len(method.eps), dtype=torch.float64) ** 2)
    values = method.eps.tolist()
    mean = sum(values) / len(values)
    spread = (sum((e - mean) ** 2 for e in values) / len(values)) ** 0.5
    assert method.epoch_figures() == pytest.approx({"eps_mean": mean, "eps_std": spread}, abs=1e-15)


def test_radii_settle_just_below_the_margins_of_a_linear_network() -> None:
    given = worlds.data(worlds.source(classes=2, inset=0.3))
    network = worlds.linear(classes=2)
    method = make(given, network)
    x, y = given.train.floats(dtype=torch.float64), given.train.y
    z = network(x).detach()
    w = network.head.weight.detach()[1] - network.head.weight.detach()[0]
    margin = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1) / w.abs().sum()
    right = margin > 0
    assert 5 < int(right.sum()) < len(y)
    assert float(margin.max()) < 0.25  # inside the inset: the box is not touched
    visits = int(float(margin.max()) / (0.1 * GAMMA)) + 2
    for epoch in range(visits):
        before = method.eps.clone()
        for step in range(given.steps):
            method.clock.epoch, method.clock.step = epoch, step
            method.after_update(method.perturb(given.batch(epoch, step)))
        assert float((method.eps - before).max()) <= 0.1 * GAMMA + 1e-12
    settled = method.eps[right]
    assert bool((settled >= (margin[right] - GAMMA).clamp_min(0) - 1e-12).all())
    assert bool((settled < margin[right]).all())
    assert bool((method.eps[~right] == 0).all())


def test_a_wrong_example_shrinks_by_a_tenth() -> None:
    given = worlds.data()
    method = make(given, worlds.linear())
    method.eps.fill_(0.05)
    batch = given.batch(0, 0)
    wrong = method.model(batch.x).argmax(dim=1) != batch.y
    assert bool(wrong.any())
    eps = method.perturb(batch).aux["eps"]
    torch.testing.assert_close(eps[wrong], torch.full_like(eps[wrong], 0.045))


def test_a_radius_is_never_tried_below_0() -> None:
    given = worlds.data(worlds.source(classes=2))
    method = make(given, worlds.linear(classes=2))
    batch = given.batch(0, 0)
    gap = (method.model(batch.x) * torch.tensor([-1.0, 1.0])).sum(dim=1).detach() * (2 * batch.y - 1)
    nearest = torch.where(gap > 0, gap, torch.inf).argmin()
    with torch.no_grad():  # all but over the boundary, so that the smallest ball reaches it
        method.model.head.bias[batch.y[nearest]] -= gap[nearest] - 1e-6
    method.eps.fill_(GAMMA / 4)
    eps = method.perturb(batch).aux["eps"]
    torch.testing.assert_close(eps[nearest], torch.tensor(0.9 * GAMMA / 4, dtype=torch.float64))


def test_warm_up_is_the_attack_where_the_prediction_is_right_and_nothing_elsewhere() -> None:
    given = worlds.data()
    search = worlds.attack(step_size=2 * 0.1 / 3)
    method = make(given, worlds.linear(), search, warmup=1.0)
    batch = method.perturb(given.batch(0, 0))
    right = method.model(batch.x).argmax(dim=1) == batch.y
    assert 0 < int(right.sum()) < len(right)
    plain = search(Objective(method.model, cross_entropy, batch.y), batch.x, rng=method.rng())
    torch.testing.assert_close(batch.x_adv[right], plain[right], rtol=0, atol=1e-15)
    assert torch.equal(batch.x_adv[~right], batch.x[~right])
    assert torch.equal(batch.aux["eps"], 0.1 * right.double())


def test_warm_up_ends_with_its_share_of_training() -> None:
    given = worlds.data()
    method = make(given, worlds.linear(), worlds.attack(bn="train"), warmup=0.25)
    method.clock.epoch, method.clock.step = 0, given.steps - 1
    assert method.forward_cost(10) == 24
    method.clock.epoch, method.clock.step = 1, 0
    assert method.forward_cost(10) == 66
    assert make(given, worlds.linear()).forward_cost(10) is None, "in eval mode it varies with the examples"


def whole(method: Iaat, batch: Batch) -> tuple[Tensor, Tensor]:
    """The radii and images of a visit, every search that of the whole batch."""

    def search(eps: Tensor, stream: str) -> Tensor:
        size = (eps / (0.5 * method.attack.steps)).clamp_min(MIN_STEP)
        objective = Objective(method.model, cross_entropy, batch.y)
        return method.run_attack(objective, batch.x, eps=eps, step_size=size, stream=stream)

    def right(x: Tensor) -> Tensor:
        with attack_mode(method, method.attack.bn):
            return method.model(x).argmax(dim=1) == batch.y

    old, clean = method.eps[batch.index], right(batch.x)
    at, above = search(old, "at"), search(old + GAMMA, "above")
    holds, holds_above = right(at), right(above)
    candidate = torch.where(holds_above, old + GAMMA, torch.where(holds, old, old - GAMMA))
    eps = 0.1 * (candidate * clean).clamp_min(0) + 0.9 * old
    return eps, search(eps, "search")


def half_trained(given: TrainData, **attack: Any) -> tuple[Iaat, Batch]:
    """A network that is wrong for some, and radii of which some are 0 and some too large."""
    method = make(given, worlds.cnn(norm="batch"), worlds.attack(**attack))
    worlds.steps(method, given, 4, epochs=6, lr=0.1)
    rng = torch.Generator().manual_seed(1)
    method.eps.copy_((0.3 * torch.rand(len(method.eps), generator=rng, dtype=torch.float64) - 0.1).clamp_min(0))
    return method, given.batch(0, 0)


@pytest.mark.parametrize("attack", [{}, {"norm": "l2"}, {"norm": "l1"}, {"noise": 0.05}, {"bn": "train"}], ids=str)
def test_searching_where_it_matters_finds_what_searching_everywhere_does(attack: dict[str, Any]) -> None:
    method, batch = half_trained(worlds.data(), **attack)
    twin = copy.deepcopy(method)
    found, (eps, x_adv) = method.perturb(batch), whole(twin, batch)
    torch.testing.assert_close(found.aux["eps"], eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.x_adv, x_adv, rtol=0, atol=1e-12)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(twin)), "running statistics, in train mode"


def test_only_what_can_change_an_answer_is_searched() -> None:
    method, batch = half_trained(worlds.data())
    sizes: list[int] = []
    method.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    old = method.eps[batch.index]
    eps = method.perturb(batch).aux["eps"]
    with attack_mode(method, "eval"):
        right = method.model(batch.x).argmax(dim=1) == batch.y
    up = right & torch.isclose(eps, old + 0.1 * GAMMA)
    above, at, last = (int(part.sum()) for part in (right, right & ~up & (old > 0), eps > 0))
    assert 0 < at < above < last < len(batch)
    steps = method.attack.steps
    assert sizes[:-1] == [len(batch), *[above] * (steps + 1), *[at] * (steps + 1), *[last] * steps]


def test_nothing_to_search_is_no_search() -> None:
    given = worlds.data()
    method = make(given, worlds.cnn(norm="batch"))
    batch = given.batch(0, 0)
    wrong = Batch(batch.x, (method.model.eval()(batch.x).argmax(dim=1) + 1) % 3, batch.index)
    found = method.perturb(wrong)
    assert torch.equal(found.x_adv, batch.x) and not found.aux["eps"].any()


def test_the_memory_belongs_to_the_example_not_to_its_place() -> None:
    given = worlds.data()
    method, shuffled = (make(given, worlds.linear(), worlds.attack(start="zero")) for _ in range(2))
    batch = given.batch(0, 0)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    method.after_update(method.perturb(batch))
    shuffled.after_update(shuffled.perturb(Batch(batch.x[order], batch.y[order], batch.index[order])))
    assert bool((method.eps > 0).any())
    torch.testing.assert_close(method.eps, shuffled.eps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_contract(norm: str) -> None:
    given = worlds.data()
    method = make(given, worlds.cnn(), worlds.attack(norm=norm))
    method.eps.fill_(0.05)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, batch.aux["eps"])
    worlds.check_resume(lambda: make(given, worlds.cnn(), worlds.attack(norm=norm)), given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given, worlds.cnn()))
