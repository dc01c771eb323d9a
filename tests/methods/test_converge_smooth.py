"""ConvergeSmooth: when the benign loss is pushed back and which way, what is remembered of an epoch, both methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods import Clock
from atbench.methods.converge_smooth import ConvergeSmooth, FgsmMepCs, FgsmRsCs
from atbench.methods.fgsm_mep import FgsmMep
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

EPS = 0.1
Cs = FgsmRsCs | FgsmMepCs
BOTH = pytest.mark.parametrize("kind", [FgsmRsCs, FgsmMepCs])
RS = {"steps": 1, "step_size": EPS, "project": False, "bn": "train"}


def make(kind: type[Cs], given: TrainData | None = None, norm: str = "none", **options: Any) -> tuple[Cs, TrainData]:
    """In the third epoch of six, the first in which the term acts."""
    given = given or worlds.data()
    method = kind(worlds.cnn(norm=norm), worlds.attack(eps=EPS, **(RS if kind is FgsmRsCs else {})), **options)
    method.setup(given)
    worlds.start(method, given, 6).epoch = 2
    return method, given


def images(method: Cs, batch: Batch) -> list[Tensor]:
    """Inputs of the passes of a round, in their order."""
    seen: list[Tensor] = []
    handle = method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    method.loss(method.perturb(batch))
    handle.remove()
    return seen


def smooth_ce(method: Cs, x: Tensor, y: Tensor, target: float = 0.6) -> float:
    """−Σ y~ log p, class by class."""
    every = list(zip(*(reference.ce(method.model(x), torch.full_like(y, k)) for k in range(3)), strict=True))
    shares = [[target if k == label else (1 - target) / 2 for k in range(3)] for label in y.tolist()]
    return reference.mean([sum(s * v for s, v in zip(*pair, strict=True)) for pair in zip(shares, every, strict=True)])


@BOTH
@pytest.mark.parametrize(("away", "sign"), [(0.2, 1), (0.03 + 1e-9, 1), (0.03 - 1e-9, 0), (0.0, 0), (-0.029, 0),
                                            (-0.03 - 1e-9, -1), (-5.0, -1)])  # fmt: skip
def test_loss_is_the_formula(kind: type[Cs], away: float, sign: int) -> None:
    """CE(x') ± 0.7 · B, B at `away` from M, and gradients through B: those of the formula, written down again."""
    method, given = make(kind, weight=0.7)
    batch = given.batch(2, 1)
    _, x_adv, benign = images(method, batch)
    assert kind is FgsmRsCs or torch.equal(benign, batch.x)
    B = smooth_ce(method, benign, batch.y)
    method.constraint.mean.fill_(B - away)
    loss = method.loss(method.perturb(batch))
    assert loss.total.item() == pytest.approx(smooth_ce(method, x_adv, batch.y) + 0.7 * sign * B, abs=1e-12)
    assert loss.terms["acts"].item() == abs(sign) and loss.terms["benign"].item() == pytest.approx(B, abs=1e-12)
    shares = torch.full((len(batch), 3), 0.2, dtype=torch.float64).scatter(1, batch.y[:, None], 0.6)
    slow = F.cross_entropy(method.model(x_adv), shares) + 0.7 * sign * F.cross_entropy(method.model(benign), shares)
    expected = torch.autograd.grad(slow, list(method.model.parameters()))
    for found, wanted in zip(torch.autograd.grad(loss.total, list(method.model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize(("others", "sign"), [(9.0, 1), (0.0, -1)])
def test_which_way_is_decided_by_the_joint_batch(
    kind: type[Cs], others: float, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However near to M this process's own part is."""
    method, given = make(kind)
    batch = method.perturb(given.batch(2, 0))
    own = method.loss(batch)
    method.constraint.mean.copy_(own.terms["benign"])
    rest = method.loss(batch).total
    monkeypatch.setattr(method, "gather", lambda rows: torch.cat([rows, torch.full_like(rows, others)]))
    torch.testing.assert_close(method.loss(batch).total - rest, sign * own.terms["benign"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("change", "threshold"), [(-0.5, 0.01), (0.0, 0.01), (0.02, 0.02), (0.5, 0.03)])
def test_the_threshold_follows_the_change_between_its_bounds(change: float, threshold: float) -> None:
    part = ConvergeSmooth(1.0, 0.03, 3.0, 1, ())
    part.mean.fill_(2.0)
    part.change.fill_(change)
    for side in (-1, 1):
        assert part.sign(part.mean + side * (threshold + 1e-9)) == side
        assert part.sign(part.mean + side * (threshold - 1e-9)) == 0


@pytest.mark.parametrize(
    ("epochs", "stride", "milestones", "expected"),
    [
        (110, 1, [100 / 110, 105 / 110], {*range(2, 99), 102, 103, 107, 108}),  # FGSM_MEP_CS.py, decay_arr
        (100, 1, [], set(range(2, 99))),
        (110, 2, [100 / 110, 105 / 110], {*range(3, 98)}),
        (2, 0, [], {1}),
    ],
)
def test_it_rests_at_the_ends_of_each_stage(
    epochs: int, stride: int, milestones: list[float], expected: set[int]
) -> None:
    part = ConvergeSmooth(1.0, 0.03, 1.0, stride, milestones)
    assert {epoch for epoch in range(epochs) if part.acts(Clock(epochs=epochs, epoch=epoch))} == expected


@BOTH
def test_it_remembers_the_mean_of_an_epoch_and_its_change(kind: type[Cs]) -> None:
    method, given = make(kind)
    means: list[float] = []
    for epoch in range(3):
        losses = []
        for step in range(given.steps):
            method.clock.epoch, method.clock.step = epoch, step
            batch = given.batch(epoch, step)
            losses.append(smooth_ce(method, images(method, batch)[-1], batch.y))
            assert method.constraint.mean.item() == pytest.approx(means[-1] if means else 0.0, abs=1e-12)
            worlds.steps(method, given, 1, epochs=6, first=epoch * given.steps + step)
        before = means[-1] if means else 0.0
        means.append(reference.mean(losses))
        assert method.constraint.mean.item() == pytest.approx(means[-1], abs=1e-12)
        assert method.constraint.change.item() == pytest.approx(means[-1] - before, abs=1e-12)
        assert method.constraint.total == 0


def trained(method: PgdAt | FgsmMep | Cs, given: TrainData) -> dict[str, Tensor]:
    method.setup(given)
    worlds.steps(method, given, 12, epochs=6, lr=0.3)
    return worlds.snapshot(method)


@BOTH
def test_a_wide_margin_is_no_term(kind: type[Cs]) -> None:
    wide, none, tight = make(kind, gamma=1e9), make(kind, weight=0.0), make(kind, gamma=0.0)
    first, second, third = (trained(*made) for made in (wide, none, tight))
    assert worlds.same(first, second) and not worlds.same(first, third)


@pytest.mark.parametrize("consistency", [0.0, 10.0])
def test_without_the_term_it_is_fgsm_mep(consistency: float) -> None:
    options: dict[str, Any] = {"consistency": consistency}
    ours = trained(make(FgsmMepCs, weight=0.0, **options)[0], worlds.data())
    base = trained(FgsmMep(worlds.cnn(), worlds.attack(eps=EPS), **options), worlds.data())
    assert worlds.same({name: value for name, value in ours.items() if name in base}, base)


def test_without_the_term_it_is_n_fgsm_of_one_radius() -> None:
    ours = trained(make(FgsmRsCs, weight=0.0, smoothing_target=1.0)[0], worlds.data())
    base = trained(PgdAt(worlds.cnn(), worlds.attack(eps=EPS, **RS)), worlds.data())
    for name, value in base.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_one_step_is_not_projected_on_the_ball(smooth: bool) -> None:
    """x' = clip(x + η + ε · sign g): g of the plain cross-entropy, or of the run's smoothed one; x + η again."""
    method, given = make(FgsmRsCs)
    method.risk.label_smoothing, method.attack_risk.label_smoothing = 0.9, 0.9 * smooth
    batch = given.batch(2, 0)
    start, x_adv, again = images(method, batch)
    assert worlds.legal(method.attack, batch.x, start, EPS) and torch.equal(start, again)
    found = []
    for z, y in zip(start, batch.y.tolist(), strict=True):
        z = z.clone().requires_grad_()
        log_p = method.model(z[None]).log_softmax(dim=1)[0]
        value = -0.1 * log_p[y] - 0.9 * log_p.mean() if smooth else -log_p[y]
        found.append((z + EPS * torch.autograd.grad(value, z)[0].sign()).clamp(0, 1).detach())
    assert torch.equal(x_adv, torch.stack(found)) and (x_adv - batch.x).abs().max() > 1.2 * EPS


@BOTH
def test_statistics_see_three_batches(kind: type[Cs]) -> None:
    method, given = make(kind, norm="batch")
    method.loss(method.perturb(given.batch(0, 0)))
    counts = [int(value) for name, value in method.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {3}


@BOTH
@pytest.mark.parametrize("first", [3, 4, 9])
def test_resume_is_exact_across_an_epoch(kind: type[Cs], first: int) -> None:
    straight, given = make(kind, gamma=0.0)
    worlds.steps(straight, given, 14, epochs=6, lr=0.3)
    before, after = make(kind, gamma=0.0)[0], make(kind, gamma=0.0)[0]
    worlds.steps(before, given, first, epochs=6, lr=0.3)
    after.load_state_dict(worlds.snapshot(before))
    worlds.steps(after, given, 14 - first, epochs=6, lr=0.3, first=first)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(after))


@BOTH
def test_the_loss_writes_nothing(kind: type[Cs]) -> None:
    method, given = make(kind)
    batch, before = method.perturb(given.batch(2, 0)), worlds.snapshot(method)
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method))
