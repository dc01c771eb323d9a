"""HAT: helpers beyond the attacked image, labelled at the attacked image by a frozen network; TRADES without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods.hat import Hat
from atbench.methods.trades import Trades
from atbench.models import Frozen, attack_mode
from tests.support import reference, worlds


def make(given: TrainData | None = None, norm: str = "none", **options: Any) -> tuple[Hat, Batch]:
    given = given or worlds.data()
    changes = {key: options.pop(key) for key in ("eps", "bn") if key in options}
    method = Hat(worlds.cnn(norm=norm), worlds.attack(start="gaussian", **changes), **options)
    method.setup(given)
    method.load_pretrained({"helper": Frozen(worlds.cnn(norm=norm, seed=9))})
    worlds.start(method, given)
    return method, given.batch(0, 0)


def scaled(given: TrainData) -> Hat:
    """With a helper that is sure of itself: it says other things at x, at x' and beyond."""
    method, _ = make(given)
    with torch.no_grad():
        for parameter in method.helper.parameters():
            parameter.mul_(3)
    return method


def said(network: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x).argmax(dim=1)


def test_loss_is_the_formula() -> None:
    given = worlds.data(worlds.source(inset=0.0), batch_size=48)
    method, batch = scaled(given), given.batch(0, 0)
    batch = method.perturb(batch)
    network = method.helper.network
    beyond = batch.x + 2 * (batch.x_adv - batch.x)
    assert beyond.min() < 0 or beyond.max() > 1, "helpers leave the legal pixels"
    label = said(network, batch.x_adv)
    assert (label != batch.y).any() and (label != said(network, beyond)).any()
    assert torch.equal(batch.aux["said"], label)
    clean, adversarial, outside = (method.model(x) for x in (batch.x, batch.x_adv, beyond))
    ce, kl = reference.mean(reference.ce(clean, batch.y)), reference.mean(reference.kl(clean, adversarial))
    helped = reference.mean(reference.ce(outside, label))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + 2.5 * kl + 0.5 * helped, abs=1e-12)
    assert loss.terms["helper"].item() == pytest.approx(helped) and loss.terms["kl"].item() == pytest.approx(kl)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_without_gamma_it_is_trades_to_the_bit_and_trains_no_helper() -> None:
    given = worlds.data()
    method, _ = make(given, norm="batch", gamma=0.0)
    trades = Trades(worlds.cnn(norm="batch"), worlds.attack(start="gaussian"), beta=2.5)
    assert worlds.steps(method, given, 8) == worlds.steps(trades, given, 8)
    assert worlds.same(method.model.state_dict(), trades.model.state_dict())
    assert method.pretraining() == {} and method.forward_cost(10) == trades.forward_cost(10)


def test_reach_one_is_the_attacked_image() -> None:
    method, batch = make(reach=1.0)
    batch = method.perturb(batch)
    by_hand = reference.mean(reference.ce(method.model(batch.x_adv), batch.aux["said"]))
    assert method.loss(batch).terms["helper"].item() == pytest.approx(by_hand, abs=1e-12)


def test_without_a_radius_helpers_are_the_images_as_the_helper_sees_them() -> None:
    method, batch = make(eps=0.0)
    perturbed = method.perturb(batch)
    assert torch.equal(perturbed.aux["said"], said(method.helper.network, batch.x))
    by_hand = reference.mean(reference.ce(method.model(batch.x), perturbed.aux["said"]))
    assert method.loss(perturbed).terms["helper"].item() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_the_helper_stays_as_it_was(bn: str) -> None:
    """In eval mode under a trainer that sets train mode, under the attack, and under a weight perturbation's."""
    given = worlds.data()
    method, batch = make(given, norm="batch", bn=bn)
    with torch.no_grad():
        for buffer in method.helper.buffers():
            if buffer.ndim == 1:
                buffer.add_(0.5)  # statistics that no batch has
    before = worlds.snapshot(method)
    x_adv = method.perturb(batch).x_adv
    assert torch.equal(method.perturb(batch).aux["said"], said(method.helper.network.eval(), x_adv))
    worlds.steps(method, given, 4)
    with attack_mode(method, "batch", freeze=False):
        method.loss(method.perturb(batch))
    after = worlds.snapshot(method)
    frozen = {name for name in after if name.startswith("helper")}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in after.keys() - frozen)
    trained = {parameter for module in method.groups().values() for parameter in module.parameters()}
    assert not trained & set(method.helper.parameters())
    assert not any(parameter.requires_grad for parameter in method.helper.parameters())


def test_it_begins_with_a_standard_run_of_its_own_whose_weights_it_copies() -> None:
    method, _ = make()
    ((name, stage),) = method.pretraining().items()
    assert (name, stage.method, stage.epochs) == ("helper", {"_target_": "atbench.methods.standard.Standard"}, 1.0)
    assert stage.offset != 0 and stage.overrides == () and not stage.live
    given = worlds.cnn(seed=9)
    assert worlds.same(method.helper.network.state_dict(), given.state_dict())
    assert not worlds.same(method.helper.network.state_dict(), method.model.state_dict())
    before = method.helper.network.state_dict()["head.weight"].clone()
    with torch.no_grad():
        given.head.weight.zero_()
    assert torch.equal(before, method.helper.network.state_dict()["head.weight"])


def test_contract() -> None:
    given = worlds.data()
    method, batch = make(given)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: make(given)[0], given)
