"""MLCAT: the ascent of small losses, the scale of the loss, and that a threshold of 0 is PGD-AT."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atbench.data import Batch
from atbench.methods.mlcat import Mlcat, MlcatLs
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds
from tests.support.configs import resolved
from tests.support.contract import ALONE, Log, trainer_of

Kind = type[Mlcat] | type[MlcatLs]
BOTH = pytest.mark.parametrize("kind", [Mlcat, MlcatLs])


def make(kind: Kind, min_loss: float, detach_scale: bool = False) -> tuple[Mlcat | MlcatLs, Batch, list[float]]:
    """A method whose network is sure of some examples, a perturbed batch, and its losses."""
    given = worlds.data()
    options = {"detach_scale": detach_scale} if kind is MlcatLs else {}
    method = kind(worlds.cnn(), worlds.attack(bn="train"), min_loss=min_loss, **options)
    with torch.no_grad():
        method.model.head.weight.mul_(20)
    worlds.start(method, given)
    batch = method.perturb(given.batch(0, 0))
    return method, batch, reference.ce(method.model(batch.x_adv), batch.y)


def gradient(total: Tensor, method: Mlcat | MlcatLs) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(total, list(method.model.parameters()))])


def test_the_weights_climb_the_small_losses_and_the_update_has_all() -> None:
    method, batch, losses = make(Mlcat, 1.5)
    small = [loss for loss in losses if loss < 1.5]
    assert 0 < len(small) < len(losses)
    assert method.ascent_loss(batch).total.item() == pytest.approx(math.fsum(small) / len(losses), abs=1e-12)
    assert method.loss(batch).total.item() == pytest.approx(reference.mean(losses), abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.ascent_loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5), "the threshold has no gradient"


def test_losses_below_the_least_count_as_it_and_have_no_gradient() -> None:
    method, batch, losses = make(MlcatLs, 1.5)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean([max(each, 1.5) for each in losses]), abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(reference.mean(losses), abs=1e-12)
    assert loss.terms["small"].item() == pytest.approx(reference.mean([each < 1.5 for each in losses]))
    rows = [i for i, each in enumerate(losses) if each >= 1.5]
    large = torch.nn.functional.cross_entropy(method.model(batch.x_adv[rows]), batch.y[rows], reduction="sum")
    wanted = gradient(large / len(losses), method)
    torch.testing.assert_close(gradient(loss.total, method), wanted, rtol=0, atol=1e-13)


def test_a_constant_scale_lets_small_losses_weigh_more() -> None:
    method, batch, losses = make(MlcatLs, 1.5, detach_scale=True)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean([max(each, 1.5) for each in losses]), abs=1e-12)
    weights = torch.tensor([max(1.5 / each, 1.0) for each in losses], dtype=torch.float64)
    rows = torch.nn.functional.cross_entropy(method.model(batch.x_adv), batch.y, reduction="none")
    torch.testing.assert_close(
        gradient(loss.total, method), gradient((weights * rows).mean(), method), rtol=1e-9, atol=0
    )


def test_a_loss_of_zero_is_no_infinity() -> None:
    method, batch, _ = make(MlcatLs, 1.5, detach_scale=True)
    with torch.no_grad():
        method.model.head.weight.zero_()
        method.model.head.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    batch = Batch(batch.x, torch.zeros_like(batch.y), batch.index, x_adv=batch.x_adv)
    total = method.loss(batch).total
    assert total.isfinite() and gradient(total, method).isfinite().all()


@BOTH
def test_with_no_least_loss_it_is_pgd_at_to_the_bit(kind: Kind) -> None:
    name = "mlcat" if kind is Mlcat else "mlcat_ls"
    states = []
    for words in ((name, "method.min_loss=0"), ("pgd_at", "attack.bn=train")):
        trainer = trainer_of(words[0], ALONE, Log(), words[1], "model.norm=batch")
        trainer.fit()
        states.append(trainer.state()["method"])
    assert worlds.same(*states)


def test_the_perturbation_comes_with_the_method_and_can_be_left_out() -> None:
    awp = resolved("method=mlcat").plus.awp
    assert (awp.gamma, awp.steps, awp.scale, awp.warmup) == (0.01, 10, "network", 0)
    assert not resolved("method=mlcat", "~plus.awp").plus and not resolved("method=mlcat_ls").plus
    own = resolved("method=mlcat", "plus=awp").plus.awp
    assert (own.gamma, own.steps, own.scale) == (0.005, 1, "layer")
    trainer = trainer_of("mlcat", ALONE, Log(), "method.min_loss=100")
    before = worlds.snapshot(trainer.method)
    trainer.train_batch()
    plain = trainer_of("mlcat", ALONE, Log(), "~plus.awp")
    assert worlds.same(before, worlds.snapshot(plain.method))
    plain.train_batch()
    assert not worlds.same(worlds.snapshot(trainer.method), worlds.snapshot(plain.method))


@BOTH
def test_contract(kind: Kind) -> None:
    method, batch, _ = make(kind, 1.5)
    assert isinstance(method, PgdAt) and method.forward_cost(10) == 23
    perturbed = worlds.check_pure(*_without_statistics(kind))
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)


def _without_statistics(kind: Kind) -> tuple[Mlcat | MlcatLs, Batch]:
    given = worlds.data()
    method = kind(worlds.cnn(), worlds.attack(bn="train"))
    worlds.start(method, given)
    return method, given.batch(0, 0)
