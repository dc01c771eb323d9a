"""CCAT: targets that decay with the distance, an attack that climbs without falling, and a batch that is half clean."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import Objective, State, confidence
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.ccat import Ccat
from atbench.methods.standard import Standard
from tests.support import reference, worlds

EPS = 0.1
OWN = {"rule": "averaged", "momentum": 0.9, "backtrack": 1.5, "return_point": "best", "steps": 6, "step_size": EPS / 3}


def make(given: TrainData | None = None, rho: float = 10.0, share: float = 0.5, seed: int = 0, **changes: Any) -> Ccat:
    given = given or worlds.data()
    method = Ccat(worlds.cnn(seed=seed), worlds.attack(**{**OWN, **changes}), rho, share)
    worlds.start(method, given)
    return method


def moved(method: Ccat, batch: Batch, *lengths: float) -> Batch:
    """Images at exactly these distances, one each after the other, from grey ones: no pixel reaches the box."""
    x = torch.full_like(batch.x, 0.5)
    direction = torch.zeros_like(x)
    direction[:, 0, 0, 0] = 1.0
    far = torch.tensor(lengths, dtype=x.dtype).repeat(len(x))[: len(x)]
    grey = Batch(x, batch.y, batch.index)
    return grey.with_adv(x + far.view(-1, 1, 1, 1) * direction)


def gammas(rho: float, *lengths: float, **changes: Any) -> list[float]:
    method = make(rho=rho, **changes)
    batch = worlds.data().batch(0, 0)
    return method.uniform(moved(method, batch, *lengths)).tolist()[: len(lengths)]


def test_the_target_is_the_label_at_the_image_and_uniform_at_the_edge() -> None:
    for rho in (1.0, 10.0):
        assert gammas(rho, 0.0)[0] == 0.0
    assert gammas(10.0, EPS, 3 * EPS) == [1.0, 1.0], "ε, and beyond, to the bit"
    assert gammas(1.0, EPS)[0] == pytest.approx(1.0, abs=1e-12)
    near, middle = gammas(10.0, 0.1 * EPS, 0.5 * EPS)
    assert (near, middle) == (pytest.approx(1 - 0.9**10), pytest.approx(1 - 0.5**10))
    assert gammas(math.inf, 0.0, 1e-9) == [0.0, 1.0]
    assert gammas(0.0, 0.0, 0.5 * EPS, EPS) == [0.0, 0.0, 0.0]


def test_distance_is_in_the_norm_of_the_attack() -> None:
    """All 64 pixels moved by ε/16 have the L2 norm ε/2 and the L∞ norm ε/16."""
    for norm, share in (("l2", 0.5), ("linf", 1 / 16), ("l1", 1.0)):
        method, batch = make(rho=1.0, norm=norm), worlds.data().batch(0, 0)
        x = torch.full_like(batch.x, 0.5)
        flat = Batch(x, batch.y, batch.index).with_adv(x + EPS / 16)
        assert method.uniform(flat).tolist() == pytest.approx([share] * len(x))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_start_in_a_direction_is_gaussian_in_every_norm(norm: str) -> None:
    """Mean square over squared mean of a pixel's size: π/2 for Gaussian numbers, 4/3 for uniform, 2 for Laplace."""
    method, x = make(norm=norm, eps=0.4), torch.full((3000, 1, 8, 8), 0.5, dtype=torch.float64)
    delta = (method._start(x) - x).flatten(1)
    length = method.attack.ball.norm(delta)
    longer = delta[(length > 0.4 / 2) & (length < 0.4 - 1e-9)]  # not the zeros, nor noise that was projected
    assert len(longer) > 300
    ratio = longer.square().mean(dim=1) / longer.abs().mean(dim=1).square()
    assert float(ratio.mean()) == pytest.approx(math.pi / 2, abs=0.1)


def slow_loss(method: Ccat, batch: Batch, rows: list[int]) -> float:
    """(1 − f)·mean over the clean half + f·mean over the attacked one, f = 1/2, element by element."""
    halves: tuple[list[float], list[float]] = ([], [])
    logits, k = method.model(batch.x_adv).tolist(), 3
    for i in range(len(batch)):
        log_p, y = reference.log_softmax(logits[i]), int(batch.y[i])
        if i not in rows:
            assert torch.equal(batch.x_adv[i], batch.x[i])
            halves[0].append(-log_p[y])
            continue
        far = max(
            abs(a - b) for a, b in zip(batch.x_adv[i].flatten().tolist(), batch.x[i].flatten().tolist(), strict=True)
        )
        gamma = 1 - (1 - min(1.0, far / EPS)) ** method.rho
        halves[1].append(-math.fsum(((1 - gamma) * (c == y) + gamma / k) * log_p[c] for c in range(k)))
    return 0.5 * reference.mean(halves[0]) + 0.5 * reference.mean(halves[1])


@pytest.mark.parametrize("rho", [0.5, 2.0, 10.0])
def test_loss_is_the_formula(rho: float) -> None:
    method = make(rho=rho)
    batch = method.perturb(worlds.data().batch(0, 0))
    rows = method.subset_mask(batch, 0.5).nonzero().flatten().tolist()
    assert len(rows) == len(batch) // 2
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(slow_loss(method, batch, rows), abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(loss.total.item())
    uniform = method.uniform(batch)
    assert 0 < loss.terms["uniform"].item() == pytest.approx(uniform.mean().item())
    right = method.model(batch.x_adv).argmax(dim=1) == batch.y
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        right.double().mean().item()
    )


def test_gradient_is_that_of_the_loss_with_constant_targets() -> None:
    method = make(rho=2.0)
    batch = method.perturb(worlds.data().batch(0, 0))
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_label_smoothing_is_on_top_of_the_targets() -> None:
    method, given = make(rho=2.0), worlds.data()
    batch = method.perturb(given.batch(0, 0))
    method.risk.label_smoothing = 0.3
    mixed = method.uniform(batch)[:, None]
    target = 0.7 * ((1 - mixed) * F.one_hot(batch.y, 3) + mixed / 3) + 0.1
    expected = -(target * method.model(batch.x_adv).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-12)


def test_without_decay_half_of_the_batch_is_adversarial_training() -> None:
    method = make(rho=0.0)
    batch = method.perturb(worlds.data().batch(0, 0))
    expected = F.cross_entropy(method.model(batch.x_adv), batch.y)
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("changes", [{"share": 0.0}, {"eps": 0.0}])
def test_without_an_attack_it_is_standard_training(changes: dict[str, float]) -> None:
    given = worlds.data()
    method = make(given, **changes)
    standard = Standard(worlds.cnn(), worlds.attack())
    losses = worlds.steps(method, given, 8), worlds.steps(standard, given, 8)
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    for a, b in zip(method.parameters(), standard.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_one_forward_holds_clean_and_attacked_rows_in_their_order() -> None:
    method = make()
    batch = method.perturb(worlds.data().batch(0, 0))
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.loss(batch)
    assert len(seen) == 1 and torch.equal(seen[0], batch.x_adv)


def test_the_attack_makes_a_wrong_class_believed_and_never_falls() -> None:
    method, batch = make(share=1.0, steps=12), worlds.data().batch(0, 0)
    start, seen = method._start(batch.x), []

    def watch(state: State) -> Tensor:
        seen.append(state.value)
        return torch.zeros_like(state.rows, dtype=torch.bool)

    method.run_attack(Objective(method.model, confidence, batch.y), batch.x, start=start, stop=watch)
    values = torch.stack(seen)
    assert (values.diff(dim=0) >= 0).all() and (values[-1] > values[0]).all()
    found = confidence(method.model(method.perturb(batch).x_adv), batch.y)
    torch.testing.assert_close(found, values[-1], rtol=0, atol=1e-12)


def test_it_is_the_confidence_and_not_the_error_that_is_attacked() -> None:
    """Cross-entropy spreads over all wrong classes; the objective is one class's."""
    method, batch = make(share=1.0, steps=20, seed=3), worlds.data().batch(0, 0)
    worlds.steps(method, worlds.data(), 12, lr=0.5)
    start = method._start(batch.x)
    by_ce = method.run_attack(Objective(method.model, lambda z, y: F.cross_entropy(z, y, reduction="none"), batch.y),
                          batch.x, start=start)  # fmt: skip
    ours, theirs = (confidence(method.model(x), batch.y) for x in (method.perturb(batch).x_adv, by_ce))
    assert (ours >= theirs - 1e-3).all() and (ours > theirs + 1e-3).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_three_starts(norm: str) -> None:
    given = worlds.data(worlds.source(n=700, inset=0.3), batch_size=600)
    method = make(given, norm=norm, eps=0.2)
    x = given.batch(0, 0).x
    start = method._start(x)
    assert worlds.legal(method.attack, x, start, 0.2)
    delta = start - x
    far = method.attack.ball.norm(delta) / 0.2
    assert 150 < int((far == 0).sum()) < 250, "a third starts at the image"
    if norm == "linf":
        # The largest of 64 pixels lies around 0.3·ε where σ = ε/(2 ln 64): below 0.2 and above 0.6 are the lengths
        # U(0, 1) of directions, two and four tenths of a third.
        assert 20 < int(((far > 0) & (far < 0.2)).sum()) < 65 and 50 < int((far > 0.6).sum()) < 115
        spread = delta.flatten(1).std(dim=1) / (0.2 / (2 * math.log(64)))
        assert int((spread - 1).abs().lt(0.25).sum()) > 170, "a third has Gaussian noise"
    assert torch.equal(start, method._start(x))


def test_only_the_portion_is_attacked_whatever_the_batch() -> None:
    given = worlds.data(batch_size=9)
    method = make(given)
    batch = method.perturb(given.batch(0, 0))
    touched = (batch.x_adv != batch.x).flatten(1).any(dim=1)
    assert torch.equal(touched, method.subset_mask(batch, 0.5)) and int(touched.sum()) == 4


def test_contract() -> None:
    given = worlds.data()
    batch = worlds.check_pure(make(given), given.batch(0, 0))
    assert worlds.legal(make(given).attack, batch.x, batch.x_adv, EPS)
    worlds.check_resume(lambda: make(given), given)


@pytest.mark.parametrize("batch_size", [12, 18])  # halves of 6, and of 9: an odd part
def test_two_processes_are_one(batch_size: int) -> None:
    worlds.check_ranks(lambda given: make(given), batch_size=batch_size)


@pytest.mark.parametrize("rho", [-1.0, float("nan")])
def test_a_rho_that_raises_confidence_is_refused(rho: float) -> None:
    with pytest.raises(ConfigError, match=r"method\.rho"):
        make(rho=rho)
