"""CLP and LSQ: noisy images, logits held together or small, and no adversary."""

from __future__ import annotations

import math

import pytest
import torch

from atbench.data import Batch, Shard, TrainData
from atbench.errors import ConfigError
from atbench.methods.clp import PENALTIES, Clp
from atbench.methods.standard import Standard
from tests.support import reference, worlds


def make(penalty: str = "pairs", weight: float = 0.5, noise: float = 0.5) -> tuple[Clp, Batch]:
    given = worlds.data()
    method = Clp(worlds.cnn(), worlds.attack(), weight, penalty, noise)
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow(penalty: str, logits: list[list[float]]) -> float:
    if penalty == "pairs":
        couples = zip(logits[0::2], logits[1::2], strict=True)
        return reference.mean([(a - b) ** 2 for one, other in couples for a, b in zip(one, other, strict=True)])
    norms = [math.sqrt(math.fsum(z * z for z in row)) for row in logits]
    return reference.mean(norms if penalty == "norms" else [norm**2 for norm in norms])


@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_loss_is_the_formula(penalty: str, weight: float) -> None:
    method, batch = make(penalty, weight)
    batch = method.perturb(batch)
    logits = method.model(batch.x_adv)
    ce, value = reference.mean(reference.ce(logits, batch.y)), slow(penalty, logits.tolist())
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + weight * value, abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["penalty"].item() == pytest.approx(value)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_both_halves_are_forwarded_for_themselves() -> None:
    """Behind BatchNorm the pairs' logits are not those of the whole batch, and three forwards are counted."""
    method, batch = make()
    method.model = worlds.cnn(norm="batch").train()
    batch = method.perturb(batch)
    first, second = (method.model(batch.x_adv[start::2]) for start in (0, 1))
    loss = method.loss(batch)
    assert loss.terms["penalty"].item() == pytest.approx((first - second).square().mean().item(), abs=1e-12)
    whole = PENALTIES["pairs"](method.model(batch.x_adv)).item()
    assert loss.terms["penalty"].item() != pytest.approx(whole, rel=1e-3)
    logits = method.model(batch.x_adv)
    assert loss.terms["ce"].item() == pytest.approx(reference.mean(reference.ce(logits, batch.y)), abs=1e-12)
    for penalty, forwards in (("pairs", 3), ("norms", 1)):
        method.penalty, method.model = penalty, worlds.cnn(norm="batch").train()
        method.loss(batch)
        counts = [int(value) for name, value in method.model.state_dict().items() if name.endswith("tracked")]
        assert set(counts) == {forwards}


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert PENALTIES["pairs"](logits).item() == pytest.approx((9 + 16 + 1 + 1) / 4)
    assert PENALTIES["norms"](logits).item() == pytest.approx((5 + 0 + 1 + 1) / 4)
    assert PENALTIES["squares"](logits).item() == pytest.approx((25 + 0 + 1 + 1) / 4)


def test_a_pair_of_the_same_image_costs_nothing() -> None:
    method, batch = make()
    twice = batch.with_adv(batch.x[:6].repeat_interleave(2, dim=0))
    halves = batch.with_adv(batch.x[:6].repeat(2, 1, 1, 1))
    assert method.loss(twice).terms["penalty"] < 1e-28 < 1e-9 < method.loss(halves).terms["penalty"]


def test_noise_is_gaussian_and_clipped_to_the_pixels() -> None:
    method, batch = make(noise=0.1)
    grey = Batch(torch.full((12, 1, 64, 64), 0.5, dtype=torch.float64), batch.y, batch.index)
    delta = method.perturb(grey).x_adv - 0.5
    assert delta.std().item() == pytest.approx(0.1, rel=0.02) and abs(delta.mean().item()) < 2e-3
    assert (delta.abs() < 0.1).double().mean().item() == pytest.approx(0.683, abs=0.01)
    method.noise = 5.0
    noisy = method.perturb(grey).x_adv
    assert noisy.min() == 0 and noisy.max() == 1
    method.clock.step += 1
    assert not torch.equal(method.perturb(grey).x_adv, noisy)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_without_weight_and_noise_it_is_standard_training_to_the_bit(penalty: str) -> None:
    clp, standard = make(penalty, weight=0.0, noise=0.0)[0], Standard(worlds.cnn(), worlds.attack())
    worlds.steps(clp, worlds.data(), 6)
    worlds.steps(standard, worlds.data(), 6)
    assert worlds.same(worlds.snapshot(clp), worlds.snapshot(standard))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_perturb_and_loss_repeat_and_processes_share_them(penalty: str) -> None:
    """Two processes have the pairs and the noise of one."""
    worlds.check_pure(*make(penalty))
    worlds.check_ranks(lambda given: Clp(worlds.cnn(), worlds.attack(), penalty=penalty))


@pytest.mark.parametrize(
    "given",
    [
        worlds.data(batch_size=9),
        worlds.data(batch_size=6, shard=Shard(0, 2)),
        worlds.data(batch_size=12, labelled=0.5, extra=0.25),
    ],
    ids=["odd", "odd-for-each-process", "odd-without-the-pool"],
)
def test_images_that_cannot_be_paired_are_refused(given: TrainData) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size.*paired.*even"):
        Clp(worlds.cnn(), worlds.attack()).setup(given)
    Clp(worlds.cnn(), worlds.attack(), penalty="norms").setup(given)


def test_an_unknown_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.penalty.*squares"):
        make("squeeze")
