"""CAT (Cheng): radii that grow while the attack fails, labels smoothed in proportion, and the hinge beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import margin
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.cat_customized import CatCustomized
from atbench.methods.pgd_at import PgdAt
from tests.support import worlds

EPS_MAX, ETA, B = 0.12, 0.02, 12


def make(given: TrainData, network: nn.Module, attack: dict[str, Any] | None = None, **options: Any) -> CatCustomized:
    settings = {"eps_max": EPS_MAX, "eta": ETA, "hinge": B * EPS_MAX, "kappa": 1.0, **options}
    method = CatCustomized(network, worlds.attack(**{"start": "zero", **(attack or {})}), **settings)
    method.setup(given)
    worlds.start(method, given)
    return method


def slow_margin(z: Tensor, y: int) -> Tensor:
    return torch.stack([z[k] for k in range(len(z)) if k != y]).max() - z[y]


def slow_attack(network: nn.Module, x: Tensor, y: int, label: Tensor, eps: float) -> Tensor:
    """One image: ascent on CE / B − ε · hinge, as the authors weigh them in a batch of B."""
    x_adv = x.clone()
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        z = network(x_adv)[0]
        ce = -(label * z.log_softmax(dim=0)).sum() / B
        hinge = eps * (1.0 - slow_margin(z, y)).clamp_min(0)
        (grad,) = torch.autograd.grad(ce - hinge, x_adv)
        x_adv = torch.max(torch.min(x_adv.detach() + 0.04 * grad.sign(), x + eps), x - eps).clip(0, 1)
    return x_adv


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("world", [worlds.cnn, worlds.linear])
def test_a_visit_is_the_rule(world: type, rule: str) -> None:
    given, network = worlds.data(), world()
    method = make(given, network, rule=rule)
    if world is worlds.cnn:
        worlds.steps(method, given, 12, epochs=6, lr=0.1)
    else:
        with torch.no_grad():
            network.head.weight.mul_(0.2)  # so that some are right after the attack
            network.head.bias.mul_(0.2)[0] += 1
    rng = torch.Generator().manual_seed(1)
    method.eps.copy_(EPS_MAX * torch.rand(len(method.eps), generator=rng, dtype=torch.float64))
    method.eps[::4] = EPS_MAX
    given_batch = given.batch(0, 0)
    batch = method.perturb(given_batch)
    old = method.eps[batch.index]
    raised = old + ETA if rule == "paper" else (old + ETA).clip(max=EPS_MAX)
    labels = method._label(batch.y, old if rule == "paper" else raised, "attack label")
    sums, ce, right_ones = [], [], 0
    for i in range(B):
        x, y = batch.x[i : i + 1], int(batch.y[i])
        x_adv = slow_attack(network, x, y, labels[i], float(raised[i]))
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-12)
        z = network(x_adv)[0]
        right = int(z.argmax()) == y
        right_ones += right
        if rule == "paper":
            new = min(float(old[i]) + ETA if right else float(old[i]), EPS_MAX)
        else:
            new = float(raised[i]) - ETA if right else float(raised[i])
        assert float(batch.aux["eps"][i]) == pytest.approx(new, abs=1e-15)
        sums.append(new * (1.0 + slow_margin(z, y)).clamp_min(0))
        ce.append(-(batch.aux["label"][i] * z.log_softmax(dim=0)).sum())
    assert 0 < right_ones < B
    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, torch.stack(ce).mean() + torch.stack(sums).sum(), rtol=0, atol=1e-12)
    spread = {"eps_mean": float(method.eps.mean()), "eps_std": float(method.eps.std(correction=0))}
    assert method.epoch_figures() == pytest.approx(spread)
    method.after_update(batch)
    assert torch.equal(method.eps[batch.index], batch.aux["eps"])


def visits(method: CatCustomized, given: TrainData, epochs: int) -> None:
    for epoch in range(epochs):
        for step in range(given.steps):
            method.clock.epoch, method.clock.step = epoch, step
            method.after_update(method.perturb(given.batch(epoch, step)))


def test_radii_climb_to_the_margins_of_a_linear_network_and_no_further() -> None:
    given = worlds.data(worlds.source(classes=2, inset=0.3))
    network = worlds.linear(classes=2)
    with torch.no_grad():
        w = network.head.weight[1] - network.head.weight[0]
        network.head.bias[1] += 0.11 * w.abs().sum()  # moves the boundary, so that margins lie on both sides of ε_max
    method = make(given, network, {"step_size": 0.2}, smoothing=0.0)
    x, y = given.train.floats(dtype=torch.float64), given.train.y
    room = -margin(network(x).detach(), y) / w.abs().sum()
    assert bool(((room > 0) & (room < EPS_MAX)).any()) and bool((room > EPS_MAX).any())
    visits(method, given, 8)
    expected = ((room / ETA).floor().clip(min=0) * ETA).clip(max=EPS_MAX)
    torch.testing.assert_close(method.eps, expected, rtol=0, atol=1e-12)


def test_the_codes_rule_has_the_opposite_sign() -> None:
    """The radius of a wrong example grows; that of a robust one stays where it is, one step below ε_max at most."""
    given = worlds.data(worlds.source(classes=2, inset=0.3))
    network = worlds.linear(classes=2)
    with torch.no_grad():  # class 1 beyond reach
        network.head.bias[1] += 100
    method = make(given, network, rule="code")
    ones = given.train.y == 1
    for start, kept in ((0.0, 0.0), (0.05, 0.05), (EPS_MAX, EPS_MAX - ETA)):
        method.eps.fill_(start)
        visits(method, given, 7)
        torch.testing.assert_close(method.eps[ones], torch.full_like(method.eps[ones], kept), rtol=0, atol=1e-12)
        assert bool((method.eps[~ones] == EPS_MAX).all())


def test_labels_are_smoothed_in_proportion_to_the_radius() -> None:
    given = worlds.data(worlds.source(n=612))
    method = make(given, worlds.linear(), smoothing=0.5)
    y, eps = (
        torch.arange(6000) % 3,
        torch.tensor([0.0, EPS_MAX / 2, EPS_MAX], dtype=torch.float64).repeat_interleave(2000),
    )
    label = method._label(y, eps, "label")
    torch.testing.assert_close(label.sum(dim=1), torch.ones(6000, dtype=torch.float64))
    assert bool((label >= 0).all()) and torch.equal(label[:2000], F.one_hot(y[:2000], 3).double())
    assert torch.equal(label, method._label(y, eps, "label")) and not torch.equal(
        label, method._label(y, eps, "attack label")
    )
    for rows, share in ((slice(2000, 4000), 0.25), (slice(4000, 6000), 0.5)):
        true = label[rows].gather(1, y[rows, None]).squeeze(1)
        assert true.mean().item() == pytest.approx(1 - share * 2 / 3, abs=0.01)
        assert float(true.min()) >= 1 - share
        # A component of Dirichlet(1, 1, 1) has variance 1/18.
        assert (true.std() / share).item() == pytest.approx((1 / 18) ** 0.5, rel=0.05)


def test_at_a_fixed_radius_without_smoothing_and_hinge_it_is_pgd_at_to_the_bit() -> None:
    given = worlds.data()
    method = make(given, worlds.cnn(), eps_max=0.1, eta=0.0, smoothing=0.0, hinge=0.0)
    method.eps.fill_(0.1)
    plain = PgdAt(worlds.cnn(), worlds.attack(start="zero"))
    assert worlds.steps(method, given, 8) == worlds.steps(plain, given, 8)


def test_the_radius_belongs_to_the_example_not_to_its_place() -> None:
    given = worlds.data()
    method, shuffled = (make(given, worlds.linear(), smoothing=0.0) for _ in range(2))
    batch = given.batch(0, 0)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    method.after_update(method.perturb(batch))
    shuffled.after_update(shuffled.perturb(Batch(batch.x[order], batch.y[order], batch.index[order])))
    assert bool((method.eps > 0).any()) and torch.equal(method.eps, shuffled.eps)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.rule: theirs"):
        make(worlds.data(), worlds.linear(), rule="theirs")


def test_contract() -> None:
    given = worlds.data()
    method = make(given, worlds.cnn())
    method.eps.fill_(0.05)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.05 + ETA)
    worlds.check_resume(lambda: make(given, worlds.cnn()), given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given, worlds.cnn()))
