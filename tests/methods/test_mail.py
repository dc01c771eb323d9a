"""MAIL: weights from the margins of the loss's own logits, on the term that each base gives them to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods import Method
from atbench.methods.mail import MailAt, MailMart, MailTrades, MarginWeights
from atbench.methods.mart import Mart
from atbench.methods.pgd_at import PgdAt
from atbench.methods.trades import Trades
from tests.support import reference, worlds

CLASSES: dict[str, tuple[type[Method], type[Method]]] = {
    "at": (MailAt, PgdAt),
    "trades": (MailTrades, Trades),
    "mart": (MailMart, Mart),
}


def make(given: TrainData, base: str, norm: str = "none", **options: Any) -> Method:
    settings = {"slope": 4.0, "bias": -0.2, "begin": 0.0, **options}
    method = CLASSES[base][0](worlds.cnn(norm=norm), worlds.attack(start="gaussian"), **settings)
    worlds.start(method, given)
    return method


def perturbed(method: Method, given: TrainData) -> Batch:
    worlds.steps(method, given, 8, epochs=10, lr=0.5)  # so that margins differ
    return method.perturb(given.batch(5, 0))


def slow(method: Method, base: str, batch: Batch) -> float:
    """The loss, example by example."""
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    weights, boost, doubt = [], [], []
    for i, y in enumerate(batch.y.tolist()):
        q = [math.exp(v) for v in reference.log_softmax(adversarial[i].tolist())]
        wrong = max(v for k, v in enumerate(q) if k != y)
        weights.append(3 / (1 + math.exp(-4 * (wrong - q[y] - 0.2))))
        boost.append(-math.log(1.0001 - wrong))
        doubt.append(1.0000001 - math.exp(reference.log_softmax(clean[i].tolist())[y]))
    natural, ce = reference.ce(clean, batch.y), reference.ce(adversarial, batch.y)
    kl = reference.kl(clean, adversarial)
    if base == "at":
        return reference.mean([w * a for w, a in zip(weights, ce, strict=True)])
    if base == "trades":
        return reference.mean(natural) + 5 * reference.mean([w * a for w, a in zip(weights, kl, strict=True)])
    first = reference.mean([w * (a + b) for w, a, b in zip(weights, ce, boost, strict=True)])
    return first + 5 * reference.mean([a * b for a, b in zip(kl, doubt, strict=True)])


@pytest.mark.parametrize("base", CLASSES)
def test_loss_is_the_formula(base: str) -> None:
    given = worlds.data()
    method = make(given, base)
    batch = perturbed(method, given)
    assert method.loss(batch).total.item() == pytest.approx(slow(method, base, batch), rel=1e-10)


@pytest.mark.parametrize("base", CLASSES)
def test_weights_are_those_of_the_losss_own_forward_and_constants_of_it(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In train mode, where BatchNorm sees the batch; and the gradient is that of a loss whose weights are numbers."""
    given = worlds.data()
    method = make(given, base, norm="batch")
    batch = perturbed(method, given)
    parameters = list(method.parameters())
    grads = torch.autograd.grad(method.loss(batch).total, parameters)
    p = method.model(batch.x_adv).detach().softmax(dim=1)
    true = p.gather(1, batch.y[:, None]).squeeze(1)
    others = p.clone()
    others[torch.arange(len(p)), batch.y] = 0
    weights = 3 / (1 + torch.exp(-4 * (others.amax(dim=1) - true - 0.2)))
    monkeypatch.setattr(MarginWeights, "__call__", lambda *_: weights)
    expected = torch.autograd.grad(method.loss(batch).total, parameters)
    for found, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    method.model.eval()
    seen = method.model(batch.x_adv).softmax(dim=1)
    assert not torch.allclose(seen, p, atol=1e-3), "modes should disagree"


@pytest.mark.parametrize("base", CLASSES)
def test_during_the_burn_in_it_is_its_base_to_the_bit(base: str) -> None:
    given = worlds.data()
    method = make(given, base, begin=0.5)
    beta = {} if base == "at" else {"beta": 5.0}
    plain = CLASSES[base][1](worlds.cnn(), worlds.attack(start="gaussian"), **beta)
    assert worlds.steps(method, given, 8) == worlds.steps(plain, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(plain))
    assert worlds.steps(method, given, 1, first=8) != worlds.steps(plain, given, 1, first=8)


def test_weights_of_a_case_by_hand() -> None:
    method = make(worlds.data(), "at")
    logits = torch.tensor([[0.7, 0.2, 0.1]] * 3, dtype=torch.float64).log()
    weights = MarginWeights(10.0, -0.5, 0.0, normalise=False)(method, logits, torch.arange(3))
    # PM = −0.5, 0.5 and 0.6
    assert weights.tolist() == pytest.approx([3 / (1 + math.exp(10)), 1.5, 3 / (1 + math.exp(-1))], rel=1e-12)


def test_without_a_slope_the_gradient_is_one_and_a_half_times_that_of_pgd_at() -> None:
    given = worlds.data()
    method, plain = make(given, "at", slope=0.0), PgdAt(worlds.cnn(), worlds.attack(start="gaussian"))
    batch = method.perturb(given.batch(0, 0))
    torch.testing.assert_close(method.loss(batch).total, 1.5 * plain.loss(batch).total, rtol=1e-14, atol=0)


def test_normalised_weights_have_mean_1_over_the_joint_batch() -> None:
    given = worlds.data()
    method, raw = make(given, "at", normalise=True), make(given, "at")
    batch = perturbed(raw, given)
    logits = raw.model(batch.x_adv)
    assert isinstance(method, MailAt) and isinstance(raw, MailAt)
    joint, expected = method.weights(method, logits, batch.y), raw.weights(raw, logits, batch.y)
    torch.testing.assert_close(joint, expected / expected.mean(), rtol=1e-12, atol=0)

    def gathered(_: Tensor) -> Tensor:
        return expected / 3

    method.gather = gathered  # type: ignore[method-assign]
    torch.testing.assert_close(method.weights(method, logits[:4], batch.y[:4]), joint[:4], rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", CLASSES)
def test_contract(base: str) -> None:
    given = worlds.data()
    method = make(given, base)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda data: make(data, base))
