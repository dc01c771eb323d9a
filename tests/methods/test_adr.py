"""ADR: the softened label, its schedules, and both bases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.adr import Adr
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

BOTH = pytest.mark.parametrize("base", ["pgd_at", "trades"])
#: λ = 0 from beginning to end.
HARD = {"interpolation_low": 0.0, "interpolation_high": 0.0}


def make(given: TrainData, norm: str = "none", steps: int = 3, **options: Any) -> Adr:
    start = "gaussian" if options.get("base") == "trades" else "uniform"
    method = Adr(worlds.cnn(norm=norm), worlds.attack(bn="train", start=start, steps=steps), **options)
    worlds.start(method, given)
    return method


def taught(method: Adr, batch: Batch, seed: int = 7, scale: float = 8.0) -> Tensor:
    """Logits of an average that is another network, sure enough to be wrong about some."""
    network = worlds.cnn(seed=seed)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(scale)
    method.average.network.load_state_dict(network.state_dict())
    return network(batch.x).detach()


def slow(logits: Tensor, y: Tensor, tau: float, lam: float) -> list[list[float]]:
    """ỹ of each example."""
    labels = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        q = [math.exp(value) for value in reference.log_softmax([z / tau for z in row])]
        trust = min(1.0, max(0.0, lam - (max(q) - q[label])))
        labels.append([trust * value + (1 - trust) * (k == label) for k, value in enumerate(q)])
    return labels


@pytest.mark.parametrize(("epoch", "tau", "lam"), [(0, 2.5, 0.3), (2, 1.5, 0.6), (3, 0.792893219, 0.812132034)])
def test_the_label_is_the_formula_along_its_schedules(epoch: int, tau: float, lam: float) -> None:
    """Half a cosine over four epochs: at a half the mean of both ends."""
    given = worlds.data()
    ends = {"temperature_high": 2.5, "temperature_low": 0.5, "interpolation_low": 0.3, "interpolation_high": 0.9}
    method, batch = make(given, **ends), given.batch(0, 0)
    method.clock.epoch = epoch
    logits = taught(method, batch)
    label = method.rectified(batch)
    torch.testing.assert_close(label, torch.tensor(slow(logits, batch.y, tau, lam)).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(label.sum(dim=1), torch.ones(len(batch), dtype=torch.float64), rtol=0, atol=1e-15)
    assert not label.requires_grad


def test_an_average_that_is_right_is_trusted_by_lambda_and_one_that_is_far_off_not_at_all() -> None:
    given = worlds.data()
    method, batch = make(given, temperature_high=0.5, temperature_low=0.5), given.batch(0, 0)
    logits = taught(method, batch)
    q, label = (logits / 0.5).softmax(dim=1), method.rectified(batch)
    onehot = torch.nn.functional.one_hot(batch.y, 3).double()
    right = logits.argmax(dim=1) == batch.y
    off = q.amax(dim=1) - (q * onehot).sum(dim=1) >= 0.7
    assert right.any() and off.any()
    torch.testing.assert_close(label[right], 0.7 * q[right] + 0.3 * onehot[right], rtol=0, atol=1e-15)
    assert torch.equal(label[off], onehot[off])


def test_the_average_is_asked_in_eval_mode() -> None:
    given = worlds.data()
    method, batch = make(given, norm="batch", decay=0.5), given.batch(0, 0)
    worlds.steps(method, given, 2)
    method.clock.epoch = method.clock.step = 0
    copy = worlds.cnn(norm="batch")
    copy.load_state_dict(method.average.network.state_dict())
    expected = torch.tensor(slow(copy.eval()(batch.x), batch.y, 2.5, 0.7)).double()
    torch.testing.assert_close(method.rectified(batch), expected, rtol=0, atol=1e-6)


@BOTH
def test_loss_is_the_formula(base: str) -> None:
    given = worlds.data()
    method, batch = make(given, base=base, beta=3.0), given.batch(0, 0)
    labels = slow(taught(method, batch), batch.y, 2.5, 0.7)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    looked_at = adversarial if base == "pgd_at" else clean
    rows = zip(looked_at.tolist(), labels, strict=True)
    ce = reference.mean(
        [-sum(t * v for t, v in zip(label, reference.log_softmax(z), strict=True)) for z, label in rows]
    )
    kl = 3 * reference.mean(reference.kl(clean, adversarial)) if base == "trades" else 0.0
    assert method.loss(batch).total.item() == pytest.approx(ce + kl, abs=1e-6)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_attack_climbs_the_cross_entropy_of_the_softened_label() -> None:
    """With the true label it ends elsewhere."""
    given = worlds.data()
    method, batch = make(given, interpolation_low=1.0), given.batch(0, 0)
    taught(method, batch, scale=20.0)
    x_adv = method.attack.begin(batch.x, 0.1, method.rng())
    label = method.rectified(batch)
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(-(label * method.model(x_adv).log_softmax(dim=1)).sum(), x_adv)
        x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(batch.x - 0.1, batch.x + 0.1).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, x_adv, rtol=0, atol=1e-12)
    assert (PgdAt(method.model, method.attack).perturb(batch).x_adv - x_adv).abs().max() > 0.05


def test_hard_labels_are_pgd_at() -> None:
    given = worlds.data()
    method = make(given, norm="batch", **HARD)
    plain = PgdAt(worlds.cnn(norm="batch"), worlds.attack(bn="train"))
    assert worlds.steps(method, given, 8) == pytest.approx(worlds.steps(plain, given, 8), abs=1e-12)


def test_trades_forwards_both_images_at_once() -> None:
    """advTrainer.py: statistics of clean and adversarial images together."""
    given = worlds.data()
    method = make(given, norm="batch", base="trades")
    batch = method.perturb(given.batch(0, 0))
    sizes: list[int] = []
    method.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    method.loss(batch)
    assert sizes == [2 * len(batch)]


@BOTH
def test_the_average_follows_every_update_and_may_be_left_unevaluated(base: str) -> None:
    given = worlds.data()
    method = make(given, norm="batch", base=base, decay=0.8)
    before = {name: value.clone() for name, value in method.average.network.state_dict().items()}
    worlds.steps(method, given, 1)
    for name, value in method.model.state_dict().items():
        if value.is_floating_point():
            expected = 0.8 * before[name] + 0.2 * value
            torch.testing.assert_close(method.average.network.state_dict()[name], expected, rtol=0, atol=1e-14)
    assert method.evaluated() is method.average.network
    raw = make(given, wa=False)
    assert raw.evaluated() is raw.model


def test_another_base_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.base: mart"):
        make(worlds.data(), base="mart")


@BOTH
def test_contract(base: str) -> None:
    given = worlds.data()
    method, batch = make(given, base=base), given.batch(0, 0)
    taught(method, batch)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: make(given, norm="batch", base=base), given)
