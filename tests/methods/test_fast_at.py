"""Fast AT: the random step in closed form, its limits, and the early stop against the published loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch
from atbench.methods.base import Keep, Report, Stop
from atbench.methods.fast_at import FastAt
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds
from tests.support.contract import ALONE, Log, trainer_of

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.125, "start": "uniform", "bn": "train"}
NO_VALIDATION = Report({}, lambda **changes: math.nan)


def make(drop: float | None = 0.2, norm: str = "none", **changes: Any) -> FastAt:
    given, method = worlds.data(), FastAt(worlds.cnn(norm=norm), worlds.attack(**{**ONE_STEP, **changes}), drop)
    method.setup(given)
    worlds.start(method, given)
    return method


def slow_step(method: FastAt, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Pixel by pixel: Π_box(Π_ε(start + α · sign ∇ CE − x) + x)."""
    start = start.clone().requires_grad_()
    grad = torch.autograd.grad(F.cross_entropy(method.model(start), y), start)[0]
    moved = []
    for pixel, begun, slope in zip(
        x.flatten().tolist(), start.flatten().tolist(), grad.flatten().tolist(), strict=True
    ):
        delta = begun - pixel + 0.125 * ((slope > 0) - (slope < 0))
        moved.append(min(1.0, max(0.0, pixel + min(0.1, max(-0.1, delta)))))
    return torch.tensor(moved, dtype=torch.float64).view_as(x)


def test_one_step_from_a_random_start() -> None:
    method = make()
    batch = method.data.batch(0, 0)
    start = (batch.x + 0.1 * method.rng().uniform(batch.x)).clamp(0, 1)
    expected = slow_step(method, batch.x, batch.y, start)
    batch = method.perturb(batch)
    torch.testing.assert_close(batch.x_adv, expected, rtol=0, atol=1e-15)
    ce = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    assert method.loss(batch).total.item() == pytest.approx(ce, abs=1e-12)


@pytest.mark.parametrize(("step", "mean", "rms"), [(1.25, 0.859375, 0.8878), (1.0, 0.75, 0.8165)])
def test_size_of_the_perturbation_in_closed_form(step: float, mean: float, rms: float) -> None:
    """E|δ| and √E δ² of Π_ε(U(−ε, ε) ± α), away from the box."""
    attack = worlds.attack(**{**ONE_STEP, "step_size": 0.1 * step})
    x = torch.full((64, 1, 32, 32), 0.5, dtype=torch.float64)
    network = worlds.linear(shape=(1, 32, 32))
    method = PgdAt(network, attack)
    worlds.start(method, worlds.data())
    delta = method.perturb(Batch(x=x, y=torch.arange(64) % 3, index=torch.arange(64))).x_adv - x
    assert delta.abs().mean().item() / 0.1 == pytest.approx(mean, abs=0.005)
    assert delta.square().mean().sqrt().item() / 0.1 == pytest.approx(rms, abs=0.005)


def test_from_the_image_itself_it_is_fgsm_training() -> None:
    given, ends = worlds.data(), []
    for start, radius in (("zero", 1.0), ("uniform", 0.0)):
        attack = worlds.attack(steps=1, step_size=0.1, start=start, rel_start_size=radius)
        method = FastAt(worlds.cnn(), attack, None)
        method.setup(given)
        worlds.steps(method, given, 4)
        ends.append(worlds.snapshot(method))
    assert worlds.same(*ends)


def published_probe(method: FastAt, x: Tensor, y: Tensor, delta: Tensor) -> float:
    """The published loop, in train mode: examples that are still right move, for five steps."""
    norms = {name: value.clone() for name, value in method.model.named_buffers()}
    for _ in range(5):
        delta = delta.detach().requires_grad_()
        output = method.model(x + delta)
        index = torch.where(output.argmax(1) == y)[0]
        grad = torch.autograd.grad(F.cross_entropy(output, y), delta)[0]
        step = torch.clamp(delta[index] + 0.025 * grad[index].sign(), -0.1, 0.1)
        delta = delta.detach().clone()
        delta[index] = torch.max(torch.min(step, 1 - x[index]), 0 - x[index]).detach()
    right = method.model((x + delta).clamp(0, 1)).argmax(1) == y
    for name, value in method.model.named_buffers():
        value.copy_(norms[name])
    return float(right.double().mean())


def test_the_probe_is_the_published_one_and_moves_no_statistics() -> None:
    method = make(norm="batch")
    worlds.steps(method, method.data, 16, lr=0.3)
    batch = method.data.batch(1, 0)
    delta = (batch.x + 0.1 * method.rng("probe").uniform(batch.x)).clamp(0, 1) - batch.x
    before = worlds.snapshot(method)
    found = method.probe(batch)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
    assert found == published_probe(method, batch.x, batch.y, delta)
    clean = float((method.model(batch.x).argmax(1) == batch.y).double().mean())
    assert 0 < found < clean, "nothing would tell the probe from a clean pass"


@pytest.mark.parametrize(("second", "stops"), [(0.49, True), (0.51, False), (0.9, False)])
def test_it_stops_where_the_probe_fell_by_more_than_drop(
    monkeypatch: pytest.MonkeyPatch, second: float, stops: bool
) -> None:
    method, found = make(), iter([0.7, second])
    monkeypatch.setattr(method, "probe", lambda batch: next(found))
    assert method.on_epoch(NO_VALIDATION) == Keep("before")
    decision = method.on_epoch(NO_VALIDATION)
    assert isinstance(decision, Stop) == stops
    if stops:
        assert decision.restore == "before" and "70.0% to 49.0%" in decision.why and float(method.previous) == 0.7


def test_the_trainer_goes_back_to_the_epoch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    trainer = trainer_of("fast_at", ALONE, log, "train.epochs=4")
    found, kept = iter([0.5, 0.6, 0.1]), []

    def probe(self: FastAt, batch: object) -> float:
        kept.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return next(found)

    monkeypatch.setattr(FastAt, "probe", probe)
    trainer.fit()
    assert len(log.rows) == 3 and "stopped" in log.rows[2]
    assert worlds.same(trainer.method.model.state_dict(), kept[1]) and not worlds.same(kept[1], kept[2])


def test_without_a_drop_nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(None)
    monkeypatch.setattr(method, "probe", lambda batch: pytest.fail("probed"))
    assert method.on_epoch(NO_VALIDATION) is None


def test_contract() -> None:
    method = make()
    batch = worlds.check_pure(method, method.data.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda given: FastAt(worlds.cnn(), worlds.attack(**ONE_STEP)))
