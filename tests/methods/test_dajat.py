"""DAJAT: TRADES on several views, with BatchNorm layers of their own, kept consistent, at a radius that grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.attacks import Objective, kl_from
from atbench.data import Batch, Brightness, Cutout, TrainData
from atbench.methods.base import Round
from atbench.methods.dajat import Dajat
from atbench.methods.divergences import jensen_shannon
from atbench.methods.trades import Trades
from atbench.models import Network
from tests.support import reference, worlds
from tests.support.contract import ALONE, Log, trainer_of

VIEWS = (Cutout(3), Brightness(0.5, 0.9))


def network(norm: str = "none") -> Network:
    """With logits that are far enough apart to tell terms of a loss apart."""
    made = worlds.cnn(norm=norm)
    with torch.no_grad():
        made.head.weight.mul_(10)  # type: ignore[operator, union-attr]
    return made


def make(given: TrainData | None = None, norm: str = "none", views: Any = VIEWS, epoch: int = 3) -> tuple[Dajat, Batch]:
    """In the last of four epochs, unless told otherwise."""
    given = given or worlds.data()
    method = Dajat(network(norm), worlds.attack(start="gaussian"), views)
    method.setup(given)
    worlds.start(method, given).epoch = epoch
    return method, given.batch(epoch, 0)


def slow_js(views: list[Tensor]) -> float:
    """Example by example: the mean over views of KL(p_v ‖ mean p)."""
    values = []
    for rows in zip(*(each.tolist() for each in views), strict=True):
        p = [[math.exp(a) for a in reference.log_softmax(row)] for row in rows]
        mixture = [math.fsum(column) / len(p) for column in zip(*p, strict=True)]
        parts = [math.fsum(a * math.log(a / m) for a, m in zip(row, mixture, strict=True)) for row in p]
        values.append(math.fsum(parts) / len(p))
    return reference.mean(values)


@pytest.mark.parametrize("views", [VIEWS, VIEWS[:1]], ids=["two", "one"])
def test_loss_is_the_formula(views: Any) -> None:
    method, batch = make(views=views)
    batch = method.perturb(batch)
    pairs = [(batch.x, batch.x_adv), *zip(batch.views, batch.aux["views_adv"], strict=True)]
    assert len(pairs) == 1 + len(views)
    outputs = [(method.model(x), method.model(x_adv)) for x, x_adv in pairs]
    ce = reference.mean([reference.mean(reference.ce(clean, batch.y)) for clean, _ in outputs])
    kl = reference.mean([reference.mean(reference.kl(clean, adversarial)) for clean, adversarial in outputs])
    js = slow_js([clean for clean, _ in outputs])
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + 11 * kl + 2 * js, abs=1e-12) and js > 1e-4
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx({"ce": ce, "kl": kl, "js": js})
    assert loss.logits is not None and torch.equal(loss.logits, outputs[0][1])
    # A detached side of KL or JS has another slope.
    exact, measured = reference.slopes(method, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_jensen_shannon_of_equal_and_of_disjoint_outputs() -> None:
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs(jensen_shannon(z, z, z).mean().item()) < 1e-15
    apart = [torch.full((1, 3), -500.0).double().index_fill(1, torch.tensor([k]), 500.0) for k in range(3)]
    assert jensen_shannon(*apart).mean().item() == pytest.approx(math.log(3))
    hard = [each.requires_grad_() for each in apart]
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(jensen_shannon(*hard).mean(), hard))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_views_its_last_epoch_is_trades_bit_for_bit(norm: str) -> None:
    method, batch = make(norm=norm, views=[])
    trades = Trades(network(norm), worlds.attack(start="gaussian"), 11.0)
    worlds.start(trades, worlds.data()).epoch = 3
    ours, theirs = method.perturb(batch), trades.perturb(batch)
    assert torch.equal(ours.x_adv, theirs.x_adv)
    for a, b in (
        (method.loss(ours).total, trades.loss(theirs).total),
        (method.ascent_loss(ours).total, trades.loss(theirs).total),
    ):
        grads = zip(*(torch.autograd.grad(x, m.model.parameters()) for x, m in ((a, method), (b, trades))), strict=True)
        assert torch.equal(a, b) and all(torch.equal(u, v) for u, v in grads)
    assert method.groups() == {"model": method.model} and not list(method.auto)


def test_the_radius_and_the_steps_grow_with_the_epoch() -> None:
    for epoch in range(4):
        method, batch = make(epoch=epoch)
        found = method.perturb(batch)
        pairs = [(batch.x, found.x_adv), *zip(batch.views, found.aux["views_adv"], strict=True)]
        for x, x_adv in pairs:
            assert (x_adv - x).abs().max().item() == pytest.approx(0.1 * (epoch + 1) / 4, abs=1e-12)
        method.attack.steps = 1
        once = method.perturb(batch).x_adv
        method.attack.steps = 0
        moved = (once - method.perturb(batch).x_adv)[(once > 0) & (once < 1)].abs()
        assert moved.max().item() == pytest.approx(0.04 * (epoch + 1) / 4, rel=0.15)


def test_views_have_layers_of_their_own_and_share_the_rest() -> None:
    """Searched, normalised and counted by their own; the model is whole again after each pass."""
    method, batch = make(norm="batch")
    names = [name for name, module in method.model.named_modules() if isinstance(module, _BatchNorm)]
    base, own = [method.model.get_submodule(name) for name in names], list(method.auto)
    with torch.no_grad():
        for layer in own:
            layer.weight.mul_(1.7)  # type: ignore[operator, union-attr]
            layer.running_mean.add_(0.3)  # type: ignore[operator, union-attr]
    plain = network("batch")
    for name, layer in zip(names, own, strict=True):
        plain.get_submodule(name).load_state_dict(layer.state_dict())
    alone = Trades(plain, method.attack)
    alone.clock = method.clock
    p = alone.probabilities(batch.views[0])
    expected = alone.run_attack(Objective(plain, kl_from, p), batch.views[0], stream="search/0")
    found = method.perturb(batch)
    assert torch.equal(found.aux["views_adv"][0], expected)

    loss = method.loss(found)
    counts = [int(layer.num_batches_tracked) for layer in (*base, *own)]  # type: ignore[arg-type]
    assert counts == [2] * len(base) + [4] * len(own), "the batch, clean and adversarial, and both of each view"
    assert [method.model.get_submodule(name) for name in names] == base and method.model.training
    ascent = method.ascent_loss(found).total
    assert not any(torch.autograd.grad(ascent, list(method.auto.parameters()), allow_unused=True)), "the base alone"
    grads = torch.autograd.grad(loss.total, list(method.parameters()))
    assert all(grad.abs().max() > 1e-6 for grad in grads if grad.ndim > 1 or len(grad) == 4), "all are trained"
    assert list(method.groups()) == ["model", "auto"]
    assert sum(len(list(group.parameters())) for group in method.groups().values()) == len(list(method.parameters()))


def test_awp_ascends_the_batch_alone_without_smoothing() -> None:
    method, batch = make()
    batch = method.perturb(batch)
    method.risk.label_smoothing = 0.3  # type: ignore[assignment]
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    expected = reference.mean(reference.ce(clean, batch.y)) + 11 * reference.mean(reference.kl(clean, adversarial))
    assert method(batch, ascent=True).total.item() == pytest.approx(expected, abs=1e-12)
    assert method(batch).total.item() == method.loss(batch).total.item() != pytest.approx(expected, abs=1e-3)


def test_a_step_under_awp_is_the_gradient_at_the_perturbed_weights(double: None) -> None:
    """By plain SGD, against the direction and the gradient worked out by hand."""
    words = ("plus=awp", "plus.awp.warmup=0", "train.optimizer.momentum=0", "train.optimizer.weight_decay=0")
    trainer = trainer_of("dajat", ALONE, Log(), *words, "train.optimizer.nesterov=false")
    method, batch = trainer.method.train(), trainer.data.batch(0, 0)
    batch = method.perturb(batch)
    weights = list(method.model.parameters())
    start = [weight.detach().clone() for weight in weights]
    grads = torch.autograd.grad(method.ascent_loss(batch).total, weights)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            weight.add_(0.005 * weight.norm() / grad.norm() * grad if weight.ndim > 1 else 0.0)
    slopes = torch.autograd.grad(method.loss(batch).total, weights)
    with torch.no_grad():
        for weight, old in zip(weights, start, strict=True):
            weight.copy_(old)
    trainer.train_step(Round(batch, perturb=False))
    for weight, old, slope in zip(weights, start, slopes, strict=True):
        torch.testing.assert_close(weight.detach(), old - trainer.groups[0].rate * slope, rtol=0, atol=1e-10)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_contract() -> None:
    given = worlds.data()
    method, batch = make(given)
    worlds.check_pure(method, batch)
    worlds.check_resume(lambda: make(given)[0], given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given)[0])
