"""LIET: the pattern of a label, its blur, the random targets, and the loss against a loop over single images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods.divergences import jensen_shannon
from atbench.methods.liet import Liet
from tests.support import reference, worlds

EPS = 0.1


def make(given: TrainData | None = None, epochs: int = 4, **options: Any) -> tuple[Liet, TrainData]:
    given = given or worlds.data()
    network = options.pop("network", None) or worlds.cnn()
    method = Liet(network, worlds.attack(eps=EPS, norm=options.pop("norm", "linf")), **options)
    worlds.start(method, given, epochs)
    method.setup(given)
    return method, given


def slow_target(y: Tensor, draws: Tensor, smoothing: float) -> list[list[float]]:
    """1 − s on the label, s over the others in proportion to U(0, 1)."""
    rows = []
    for label, row in zip(y.tolist(), ((draws + 1) / 2).tolist(), strict=True):
        total = math.fsum(v for k, v in enumerate(row) if k != label)
        rows.append([1 - smoothing if k == label else smoothing * v / total for k, v in enumerate(row)])
    return rows


def slow_ce(logits: Tensor, target: list[list[float]]) -> Tensor:
    terms = [-sum(w * row[k] for k, w in enumerate(t)) for t, row in zip(target, logits.log_softmax(1), strict=True)]
    return torch.stack(terms).mean()


def targets(method: Liet, y: Tensor, stream: str) -> list[list[float]]:
    return slow_target(y, method.rng(stream).uniform(torch.zeros(len(y), 3, dtype=worlds.F64)), method.smoothing)


def slow_pattern(method: Liet) -> Tensor:
    """ε·sign of each class's gradient at grey, in eval mode."""
    target = targets(method, torch.arange(3), "liet-pattern")
    method.model.eval()
    rows = []
    for k in range(3):
        grey = torch.full((1, 1, 8, 8), 0.5, dtype=worlds.F64, requires_grad=True)
        rows.append(EPS * torch.autograd.grad(slow_ce(method.model(grey), [target[k]]), grey)[0][0].sign())
    method.model.train()
    return torch.stack(rows)


def slow_points(method: Liet, batch: Batch) -> tuple[Tensor, Tensor]:
    """x₀ and x' of a batch."""
    pattern, rng = slow_pattern(method), method.rng("liet-start")
    mask = rng.uniform(batch.x)
    share = rng.scalar(method.low, method.high)
    noise = EPS * rng.uniform(batch.x)
    sign = 1 if rng.scalar(-1, 1) > 0 else -1
    starts = []
    for i, y in enumerate(batch.y.tolist()):
        delta = torch.where((mask[i] + 1) / 2 < share, noise[i], pattern[y])
        starts.append((batch.x[i] + sign * delta).clamp(0, 1))
    start = torch.stack(starts).requires_grad_()
    grad = torch.autograd.grad(slow_ce(method.model(start), targets(method, batch.y, "liet-search")), start)[0]
    return start.detach(), (batch.x + (start.detach() + EPS * grad.sign() - batch.x).clamp(-EPS, EPS)).clamp(0, 1)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("consistency", [0.0, 100.0])
def test_loss_is_the_formula(consistency: float, epoch: int) -> None:
    method, given = make(consistency=consistency)
    method.clock.epoch = epoch
    batch = method.perturb(given.batch(epoch, 0))
    start, x_adv = slow_points(method, batch)
    torch.testing.assert_close(batch.aux["start"], start, rtol=0, atol=1e-15)
    before, after = method.model(start), method.model(x_adv)
    middle = ((before.softmax(1) + after.softmax(1)) / 2).log()
    js = reference.mean(
        [(a + b) / 2 for a, b in zip(reference.kl(before, middle), reference.kl(after, middle), strict=True)]
    )
    expected = slow_ce(after, targets(method, batch.y, "liet-loss")).item() + consistency * (epoch + 1) / 4 * js
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12) and loss.terms["js"].item() == pytest.approx(js)


def test_both_passes_have_a_gradient() -> None:
    method, given = make()
    batch = method.perturb(given.batch(0, 0))
    start, x_adv = slow_points(method, batch)
    before, after = method.model(start), method.model(x_adv)
    p, q = before.softmax(1), after.softmax(1)
    m = ((p + q) / 2).log()
    js = (F.kl_div(m, p, reduction="batchmean") + F.kl_div(m, q, reduction="batchmean")) / 2
    value = slow_ce(after, targets(method, batch.y, "liet-loss")) + 25 * js
    expected = torch.autograd.grad(value, list(method.model.parameters()))
    method.loss(batch).total.backward()
    for parameter, grad in zip(method.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)


def test_targets_are_fresh_at_every_use() -> None:
    """In sum 1, 1 − s on the label; the search, the loss and the pattern draw their own, and each step its own."""
    method, given = make()
    y = given.batch(0, 0).y
    logits = torch.zeros(len(y), 3, dtype=worlds.F64)
    found = [method._soften(y, logits, method.rng(stream)) for stream in ("liet-search", "liet-loss", "liet-pattern")]
    method.clock.step = 1
    found.append(method._soften(y, logits, method.rng("liet-search")))
    for i, one in enumerate(found):
        torch.testing.assert_close(one.sum(dim=1), torch.ones(len(y), dtype=worlds.F64))
        assert (one[torch.arange(len(y)), y] == 1 - 0.6).all() and (one >= 0).all()
        assert not any(torch.equal(one, other) for other in found[:i])


def test_the_pattern_is_found_every_so_many_batches_and_at_each_epoch_s_beginning() -> None:
    method, given = make(every=3)
    assert given.steps == 4
    fresh, before = [], method.pattern.clone()
    for position in range(8):
        worlds.steps(method, given, 1, first=position)
        fresh.append(not torch.equal(method.pattern, before))
        before = method.pattern.clone()
        assert torch.equal(before.abs(), torch.full_like(before, EPS))
    assert fresh == [True, False, False, True] * 2


def test_all_noise_is_fgsm_from_a_random_start() -> None:
    """r = 1: no pixel has the pattern, and the start is uniform in the ball. r = 0: ± the pattern alone."""
    method, given = make(low=1.0, high=1.0)
    batch = given.batch(0, 0)
    rng = method.rng("liet-start")
    rng.uniform(batch.x)
    rng.scalar(1.0, 1.0)
    noise = EPS * rng.uniform(batch.x)
    start = method.perturb(batch).aux["start"]
    assert any(torch.equal(start, (batch.x + s * noise).clamp(0, 1)) for s in (1, -1))
    bare, _ = make(low=0.0, high=0.0)
    signs = set()
    for step in range(12):
        bare.clock.step = step
        found = bare.perturb(batch)
        both = [(batch.x + s * found.aux["pattern"][0][batch.y]).clamp(0, 1) for s in (1, -1)]
        signs |= {s for s, image in zip((1, -1), both, strict=True) if torch.equal(found.aux["start"], image)}
        assert any(torch.equal(found.aux["start"], image) for image in both)
        bare.after_update(found)
    assert signs == {1, -1}


def test_divergence_is_between_0_and_ln_2() -> None:
    z = torch.randn(6, 4, dtype=worlds.F64, generator=torch.Generator().manual_seed(0))
    assert jensen_shannon(z, z).abs().max() < 1e-15
    far = jensen_shannon(torch.tensor([[1e3, 0.0]]), torch.tensor([[0.0, 1e3]]))
    assert far.item() == pytest.approx(math.log(2)) and (jensen_shannon(z, 3 * z.flip(1)) > 0).all()


def test_two_forwards_in_train_mode_and_the_pattern_in_eval_mode() -> None:
    method, given = make(network=worlds.cnn(norm="batch"))
    method.loss(method.perturb(given.batch(0, 0)))
    assert method.model.stages[1][0].num_batches_tracked == 2  # type: ignore[index,union-attr]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_legal_in_every_norm(norm: str) -> None:
    method, given = make(norm=norm)
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for position in range(3):
        worlds.steps(method, given, 1, first=position)
        assert all(worlds.legal(method.attack, given.batch(0, position).x, x, EPS) for x in seen[-2:])


def test_only_after_update_writes_and_a_resumed_run_is_equal() -> None:
    method, given = make()
    batch, before = given.batch(0, 0), worlds.snapshot(method)
    assert torch.equal(method.loss(method.perturb(batch)).total, method.loss(method.perturb(batch)).total)
    assert worlds.same(before, worlds.snapshot(method))
    worlds.check_resume(lambda: make(every=4)[0], given, 6)
