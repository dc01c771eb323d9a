"""MMA: bisection finds the margin of a linear network, and the loss is the hinge of the paper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, margin, soft_margin
from atbench.data import TrainData
from atbench.errors import ConfigError
from atbench.methods.mma import Mma
from atbench.methods.standard import Standard
from atbench.models import attack_mode
from tests.support import worlds

D_MAX, MIN_EPS = 0.15, 0.03


def make(given: TrainData, network: nn.Module, search: GradientAttack | None = None, **options: Any) -> Mma:
    method = Mma(network, search or worlds.attack(), **{"d_max": D_MAX, "min_eps": MIN_EPS, **options})
    method.setup(given)
    worlds.start(method, given)
    return method


def trained(given: TrainData, **options: float) -> Mma:
    """On a CNN that gets some of its examples right."""
    method = make(given, worlds.cnn(), worlds.attack(start="zero"), **options)
    worlds.steps(method, given, 24, epochs=10, lr=0.5)
    return method


@pytest.mark.parametrize(("norm", "start", "dual", "d_max"), [("linf", "uniform", 1, 0.15), ("l2", "zero", 2, 0.8)])
def test_margins_of_a_linear_network_are_met_to_the_last_bracket(
    norm: str, start: str, dual: int, d_max: float
) -> None:
    given = worlds.data(worlds.source(classes=2, inset=0.2))
    network = worlds.linear(classes=2)
    method = make(given, network, worlds.attack(norm=norm, start=start, steps=10), d_max=d_max)
    w = network.head.weight.detach()[1] - network.head.weight.detach()[0]
    for step in range(given.steps):
        batch = method.perturb(given.batch(0, step))
        true = -soft_margin(network(batch.x).detach(), batch.y) / w.norm(p=dual)
        right, near = true > 0, (true > 0) & (true < d_max)
        assert bool(near.any())
        error = (batch.aux["margin"] - true)[near].abs()
        assert float(error.max()) <= 1.05 * d_max / 2**10 + 1e-12
        assert bool((batch.aux["margin"][~right] == 0).all())
        method.after_update(batch)
        assert torch.equal(method.margins[batch.index], batch.aux["margin"])


def test_its_radii_are_the_margins_that_it_remembers() -> None:
    method = make(worlds.data(), worlds.linear())
    assert method.epoch_figures() == pytest.approx({"eps_mean": MIN_EPS, "eps_std": 0.0}, abs=1e-15)
    method.margins[::2] = 3 * MIN_EPS
    assert method.epoch_figures() == pytest.approx({"eps_mean": 2 * MIN_EPS, "eps_std": MIN_EPS}, abs=1e-15)


def test_examples_are_pushed_at_their_boundary() -> None:
    given = worlds.data()
    method = trained(given, bisections=45)
    batch = method.perturb(given.batch(5, 0))
    pushed = (batch.aux["margin"] > 0) & (batch.aux["margin"] < D_MAX)
    assert bool(pushed.any())
    slack = soft_margin(method.model(batch.x_adv).detach(), batch.y)[pushed]
    assert float(slack.abs().max()) < 1e-9


def test_examples_right_beyond_d_max_are_moved_but_do_not_count() -> None:
    """The authors forward them where the search found them, and drop their loss: BatchNorm sees them there."""
    given = worlds.data()
    method = trained(given)
    method.d_max = 1e-4
    method.margins.fill_(1e-5)
    batch = method.perturb(given.batch(5, 0))
    right = soft_margin(method.model(batch.x), batch.y) < 0
    assert int(right.sum()) > 0
    assert bool((batch.aux["margin"][right] > method.d_max).all())
    assert torch.equal(batch.aux["counts"], (~right).double())
    moved = (batch.x_adv - batch.x).flatten(1).abs().amax(dim=1)
    assert bool((moved[right] > 0).all()) and bool((moved[~right] == 0).all())
    before = method.loss(batch).total
    batch.x_adv[right] = batch.x[right]
    torch.testing.assert_close(method.loss(batch).total, before, rtol=0, atol=1e-12)


def test_right_and_wrong_are_those_of_train_mode() -> None:
    """Where running and batch statistics disagree, the loss and the search take the same examples for wrong."""
    given = worlds.data()
    method = make(given, worlds.cnn(norm="batch"), bisect_bn="batch")
    worlds.steps(method, given, 24, epochs=10, lr=0.5)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 20.0  # type: ignore[operator]
    batch = given.batch(5, 0)
    found = method.perturb(batch)
    trained_right = soft_margin(method.model(batch.x), batch.y) < 0
    method.eval()
    assert not torch.equal(trained_right, soft_margin(method.model(batch.x), batch.y) < 0), "modes should disagree"
    assert torch.equal(found.aux["margin"] > 0, trained_right)


def test_boundaries_are_those_of_the_bisections_mode() -> None:
    """In train mode every look moves the running statistics, as the clean batch does before; `batch` finds the same
    without.
    """
    given = worlds.data()
    trained = worlds.cnn(norm="batch")
    worlds.steps(Standard(trained, worlds.attack()), given, 24, epochs=10, lr=0.1)
    found, looks = {}, {}
    for mode in ("train", "batch", "eval"):
        network = copy.deepcopy(trained)
        method = make(given, network, d_max=0.4, bisections=40, bisect_bn=mode)
        before = int(network.state_dict()["stages.1.0.num_batches_tracked"])
        batch = method.perturb(given.batch(5, 0))
        looks[mode] = int(network.state_dict()["stages.1.0.num_batches_tracked"]) - before
        found[mode] = batch.aux["margin"]
    assert looks == {"train": 41, "batch": 1, "eval": 1}
    assert torch.equal(found["train"], found["batch"]) and not torch.equal(found["train"], found["eval"])
    pushed = (found["eval"] > 0) & (found["eval"] < 0.4)
    assert bool(pushed.any()), "eval ran last: its running statistics are still those of its search"
    with attack_mode(method, "eval", freeze=False):
        slack = soft_margin(method.model(batch.x_adv).detach(), batch.y)
    assert float(slack[pushed].abs().max()) < 1e-6
    with pytest.raises(ConfigError, match=r"method\.bisect_bn: fixed"):
        make(given, network, bisect_bn="fixed")


def test_d_max_0_leaves_the_wrong_examples_and_the_clean_loss() -> None:
    given = worlds.data()
    method = make(given, worlds.linear(), d_max=0.0)
    batch = method.perturb(given.batch(0, 0))
    logits = method.model(batch.x)
    ce = F.cross_entropy(logits, batch.y, reduction="none")
    wrong = logits.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1) < 0.5
    assert 0 < int(wrong.sum()) < len(wrong)
    expected = 2 / 3 * (ce * wrong).sum() / len(ce) + ce.mean() / 3
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-12)


def slow_slack(network: nn.Module, x: Tensor, y: int) -> float:
    z = network(x)[0]
    return float((torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), dim=0) - z[y]).detach())


def slow_example(network: nn.Module, x: Tensor, y: int, memory: float, steps: int) -> tuple[Tensor, float, float]:
    """Image, weight and margin of one example by AN-PGD, L∞, from x itself."""
    if slow_slack(network, x, y) >= 0:
        return x, 1.0, 0.0
    radius = max(memory, MIN_EPS)
    x_pgd = x.clone()
    for _ in range(steps):
        x_pgd = x_pgd.detach().requires_grad_()
        z = network(x_pgd)[0]
        slack = torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), dim=0) - z[y]
        (grad,) = torch.autograd.grad(slack, x_pgd)
        moved = x_pgd.detach() + 2.5 * radius / steps * grad.sign()
        x_pgd = torch.max(torch.min(moved, x + radius), x - radius).clip(0, 1)
    u, low, high, e = (x_pgd - x) / radius, 0.0, 1.05 * D_MAX, radius
    for _ in range(10):
        if slow_slack(network, (x + e * u).clip(0, 1), y) < 0:
            low = e
        else:
            high = e
        e = (low + high) / 2
    return (x + e * u).clip(0, 1), float(e < D_MAX), e


def test_search_and_loss_are_those_of_a_slow_reference() -> None:
    given = worlds.data()
    method = trained(given)
    method.margins[::2] = 1.04 * D_MAX  # what examples beyond d_max leave behind
    batch = method.perturb(given.batch(5, 0))
    model, pushing, clean = method.model, [], []
    kinds = set()
    for i in range(len(batch)):
        x, y = batch.x[i : i + 1], int(batch.y[i])
        image, weight, e = slow_example(model, x, y, float(method.margins[batch.index[i]]), steps=3)
        assert float(batch.aux["margin"][i]) == pytest.approx(e, abs=1e-12)
        torch.testing.assert_close(batch.x_adv[i : i + 1], image, rtol=0, atol=1e-11)
        pushing.append(-weight * model(image).log_softmax(dim=1)[0, y])
        clean.append(-model(x).log_softmax(dim=1)[0, y])
        kinds.add((weight, e > 0))
    assert len(kinds) > 1, "the reference should see more than one kind of example"
    expected = (2 * torch.stack(pushing).mean() + torch.stack(clean).mean()) / 3
    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, expected, rtol=0, atol=1e-10)


def test_with_two_classes_the_soft_margin_is_the_margin() -> None:
    z = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 2
    torch.testing.assert_close(soft_margin(z, y), margin(z, y))


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_batches_of_one_kind_pass_through_batch_norm(bias: float) -> None:
    given = worlds.data()
    network = worlds.cnn(norm="batch")
    method = make(given, network)
    batch = given.batch(0, 0)
    batch.y.zero_()
    with torch.no_grad():
        network.head.bias[0] = bias
    loss = method.loss(method.perturb(batch))
    assert bool(torch.isfinite(loss.total))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_contract(norm: str) -> None:
    given = worlds.data()
    method = make(given, worlds.cnn(), worlds.attack(norm=norm))
    worlds.steps(method, given, 12, epochs=10, lr=0.5)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, batch.aux["margin"])
    worlds.check_resume(lambda: make(given, worlds.cnn(), worlds.attack(norm=norm)), given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given, worlds.linear()))
