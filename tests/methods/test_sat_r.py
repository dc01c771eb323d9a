"""SAT-R1, R2, R3: which images each compares, at which distance, and where the regularizers vanish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, Shard
from atbench.methods import Method
from atbench.methods.pgd_at import PgdAt
from atbench.methods.sat_r import SatR1, SatR2, SatR3
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero"}
EPS = 0.1
METHODS: list[type[Method]] = [SatR1, SatR2, SatR3]


def make(kind: type[Method], network: nn.Module | None = None, **options: Any) -> tuple[Any, Batch]:
    given = worlds.data()
    method: Any = kind(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def signs(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(network(x), y), x)[0].sign()


def distances(a: Tensor, b: Tensor) -> list[float]:
    rows = zip(a.tolist(), b.tolist(), strict=True)
    return [sum((u - v) ** 2 for u, v in zip(left, right, strict=True)) for left, right in rows]


def test_r1_is_the_formula() -> None:
    """FGSM for all, and three steps of a third of ε for the last image; its two logits alone are compared."""
    method, batch = make(SatR1, weight=0.7, iterations=3)
    found = method.perturb(batch)
    fgsm = (batch.x + EPS * signs(method.model, batch.x, batch.y)).clamp(0, 1)
    torch.testing.assert_close(found.x_adv, fgsm, rtol=0, atol=1e-14)
    last = batch.x[-1:]
    for _ in range(3):
        last = (last + EPS / 3 * signs(method.model, last, batch.y[-1:])).clamp(0, 1)
    ce = reference.mean(reference.ce(method.model(fgsm), batch.y))
    gap = distances(method.model(fgsm[-1:]), method.model(last))[0]
    assert gap > 1e-8, "one step and three end in the same place"
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(ce + 0.7 * gap, abs=1e-12)
    assert loss.terms["distance"].item() == pytest.approx(gap, rel=1e-9) and len(loss.logits) == len(batch)


def test_r2_is_the_formula() -> None:
    """The second half steps by ε from an image with noise of length a, which is clipped only at the end."""
    method, batch = make(SatR2, weight=5.0, noise=0.5)
    found = method.perturb(batch)
    start = batch.x + 0.05 * method.rng("noise").normal(batch.x).sign()
    assert (start < 0).any() or (start > 1).any(), "nothing would tell a clipped start"
    noisy = (start + EPS * signs(method.model, start, batch.y)).clamp(0, 1)
    torch.testing.assert_close(found.aux["noisy"], noisy, rtol=0, atol=1e-14)
    assert EPS + 0.04 < (found.aux["noisy"] - batch.x).abs().max() <= EPS + 0.05 + 1e-12
    fgsm = (batch.x + EPS * signs(method.model, batch.x, batch.y)).clamp(0, 1)
    torch.testing.assert_close(found.x_adv, fgsm, rtol=0, atol=1e-14)
    ce = reference.mean(reference.ce(method.model(fgsm), batch.y))
    gap = reference.mean(distances(method.model(fgsm), method.model(noisy)))
    assert method.loss(found).total.item() == pytest.approx(ce + 5 * gap, abs=1e-12)


@pytest.mark.parametrize("tau", [0.2, 5.0])
def test_r3_is_the_formula(tau: float) -> None:
    """Two steps along one gradient, at a clipped noisy image; the maximum is of the batch's means."""
    method, batch = make(SatR3, weight=0.5, tau=tau, low=0.25, noise=0.5)
    found = method.perturb(batch)
    start = (batch.x + 0.05 * method.rng("noise").normal(batch.x).sign()).clamp(0, 1)
    way = signs(method.model, start, batch.y)
    low, high = (start + 0.025 * way).clamp(0, 1), (start + EPS * way).clamp(0, 1)
    torch.testing.assert_close(found.aux["low"], low, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.x_adv, high, rtol=0, atol=1e-14)
    short, long = (reference.mean(reference.ce(method.model(x), batch.y)) for x in (low, high))
    expected = long + 0.5 * max(short - tau * long, 0)
    assert method.loss(found).total.item() == pytest.approx(expected, abs=1e-12)


def test_r3_compares_means_and_not_examples() -> None:
    """Of two examples one is above τ and one below; their means are below, so that nothing is added."""
    method, batch = make(SatR3, worlds.linear(scale=2.0), tau=0.9)
    found = method.perturb(batch)
    with torch.no_grad():
        low, high = (
            F.cross_entropy(method.model(x), batch.y, reduction="none") for x in (found.aux["low"], found.x_adv)
        )
    tau = float(low.mean() / high.mean()) * 1.001
    assert (low > tau * high).any()
    method.tau = tau
    assert method.loss(found).total.item() == pytest.approx(high.mean().item(), abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SatR1, {"weight": 0.0}), (SatR2, {"weight": 0.0}), (SatR3, {"weight": 0.0, "noise": 0.0})],
)
def test_without_a_regularizer_it_is_fgsm_training(kind: type[Method], options: dict[str, Any]) -> None:
    given = worlds.data()
    method, other = (
        kind(worlds.cnn(), worlds.attack(**ONE_STEP), **options),
        PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP)),
    )
    torch.testing.assert_close(worlds.steps(method, given, 8), worlds.steps(other, given, 8), rtol=1e-12, atol=0)
    ours, theirs = worlds.snapshot(method), worlds.snapshot(other)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_limits_in_which_the_regularizers_vanish() -> None:
    """One iteration; no noise; two steps of one length, where (1 − τ) of the loss is left."""
    method, batch = make(SatR1, iterations=1)
    assert method.loss(method.perturb(batch)).terms["distance"] < 1e-24
    method, batch = make(SatR2, noise=0.0)
    assert method.loss(method.perturb(batch)).terms["distance"] == 0
    method, batch = make(SatR3, weight=2.0, tau=0.4, low=1.0)
    loss = method.loss(method.perturb(batch))
    assert loss.total.item() == pytest.approx((1 + 2 * 0.6) * loss.terms["ce"].item(), rel=1e-12)


@pytest.mark.parametrize("kind", METHODS)
def test_no_gradient_is_stopped(kind: type[Method]) -> None:
    options = {"tau": 0.2} if kind is SatR3 else {"weight": 3.0}
    method, batch = make(kind, **options)
    batch = method.perturb(batch)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(("kind", "rows"), [(SatR1, 13), (SatR2, 24), (SatR3, 24)])
def test_an_update_is_one_joint_forward(kind: type[Method], rows: int) -> None:
    method, batch = make(kind, worlds.cnn(norm="batch"))
    seen: list[tuple[bool, int]] = []
    method.model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
    method.loss(method.perturb(batch))
    attack = {13: [(False, 12), *[(False, 1)] * 3], 24: [(False, 24 if kind is SatR2 else 12)]}[rows]
    assert seen == [*attack, (True, rows)]


@pytest.mark.parametrize("kind", METHODS)
def test_contract(kind: type[Method]) -> None:
    method, batch = make(kind)
    worlds.check_pure(method, batch)
    fresh = {SatR1: {"weight": 3.0}, SatR2: {}}
    if kind is not SatR3:
        worlds.check_ranks(lambda given: kind(worlds.cnn(), worlds.attack(**ONE_STEP), **fresh[kind]))  # type: ignore[arg-type]


@pytest.mark.parametrize("tau", [0.2, 0.99, 5.0])
def test_r3_s_maximum_is_of_the_joint_batch(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes add the excess or neither does, whatever their own rows say."""
    whole, joint = make(SatR3, weight=0.5, tau=tau)
    total = whole.loss(whole.perturb(joint))
    excess = (total.terms["low"] - tau * total.terms["ce"])[None]
    monkeypatch.setattr(SatR3, "gather", lambda self, rows, **_: excess)
    halves = []
    for rank in (0, 1):
        given = worlds.data(shard=Shard(rank, 2))
        method = SatR3(worlds.cnn(), worlds.attack(**ONE_STEP), weight=0.5, tau=tau)
        worlds.start(method, given)
        halves.append(method.loss(method.perturb(given.batch(0, 0))).total)
    torch.testing.assert_close(sum(halves) / 2, total.total, rtol=0, atol=1e-12)
