"""RLFAT: what the shuffle does to pixels, both losses against the formula, and PGD-AT and TRADES as its limits."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods import Clock, Method
from atbench.methods.pgd_at import PgdAt
from atbench.methods.rlfat import Rlfat, RlfatTrades, block_shuffle
from atbench.methods.trades import Trades
from atbench.runs.seeding import generator
from tests.support import reference, worlds

BOTH = [Rlfat, RlfatTrades]
START = {Rlfat: "uniform", RlfatTrades: "gaussian"}


def make(
    kind: type[Rlfat | RlfatTrades], norm: str = "none", bn: str = "eval", **options: float
) -> Rlfat | RlfatTrades:
    return kind(worlds.cnn(norm=norm), worlds.attack(start=START[kind], bn=bn), **options)  # type: ignore[arg-type]


def prepared(method: Method, given: TrainData | None = None, step: int = 0) -> Batch:
    """The perturbed batch of a step."""
    given = given or worlds.data()
    worlds.start(method, given).step = step
    return method.perturb(given.batch(0, step))


def slow_shuffle(image: Tensor, blocks: int, clock: Clock) -> list[list[list[float]]]:
    """One image as lists: strips of rows put one after the other, then strips of columns."""
    source = generator("cpu", clock.seed, "rlfat", clock.epoch, clock.step, clock.round)

    def reordered(lines: list[list[float]]) -> list[list[float]]:
        cuts = [0, *sorted(torch.randint(len(lines), (blocks - 1,), generator=source).tolist()), len(lines)]
        parts = [lines[first:last] for first, last in pairwise(cuts)]
        return [line for part in torch.randperm(blocks, generator=source).tolist() for line in parts[part]]

    columns = zip(*reordered(image[0].tolist()), strict=True)
    rows = zip(*reordered([list(column) for column in columns]), strict=True)
    return [[list(row) for row in rows]]


def clocks(count: int) -> list[Clock]:
    return [Clock(seed=3, epoch=step // 7, step=step % 7) for step in range(count)]


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_shuffle_is_strips_of_rows_then_of_columns(blocks: int) -> None:
    x = torch.rand(2, 1, 6, 9, dtype=torch.float64)
    for clock in clocks(40):
        assert block_shuffle(x, blocks, clock)[1].tolist() == slow_shuffle(x[1], blocks, clock)


def test_shuffle_permutes_pixels_the_same_way_in_every_image_and_channel() -> None:
    x = torch.arange(48.0).view(1, 1, 6, 8) + 100 * torch.arange(6.0).view(2, 3, 1, 1)
    moved = 0
    for clock in clocks(40):
        out = block_shuffle(x, 3, clock)
        assert torch.equal(out.flatten(1).sort().values, x.flatten(1).sort().values)
        pattern = out[0, 0]
        assert torch.equal(out, pattern + 100 * torch.arange(6.0).view(2, 3, 1, 1))
        assert torch.equal(block_shuffle(x, 3, clock), out), "the same draw gives the same"
        moved += not torch.equal(out, x)
    assert moved > 25


def test_one_block_is_the_identity() -> None:
    x = torch.rand(2, 1, 6, 8)
    assert all(torch.equal(block_shuffle(x, 1, clock), x) for clock in clocks(20))


def test_two_blocks_roll_each_axis_every_second_time() -> None:
    """An axis of 8 stays with probability ½ + ½ · ⅛ (a cut at 0), else rolls by any of 1..7 alike, apart from the
    other.
    """
    x = torch.arange(64.0).view(1, 1, 8, 8)
    rolls = {(r, c): torch.roll(x, (r, c), (2, 3)) for r in range(8) for c in range(8)}
    known = {tuple(image.flatten().tolist()): roll for roll, image in rolls.items()}
    count = Counter(known[tuple(block_shuffle(x, 2, clock).flatten().tolist())] for clock in clocks(3000))
    for axis in (0, 1):
        shares = [sum(n for roll, n in count.items() if roll[axis] == r) / 3000 for r in range(8)]
        assert shares[0] == pytest.approx(9 / 16, abs=0.04)
        assert all(share == pytest.approx(1 / 16, abs=0.02) for share in shares[1:])
    assert count[0, 0] / 3000 == pytest.approx((9 / 16) ** 2, abs=0.04)


def test_draw_is_one_a_round_and_the_same_on_every_process() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    here, there = Clock(seed=3, step=2, rank=0, world=2), Clock(seed=3, step=2, rank=1, world=2)
    assert torch.equal(block_shuffle(x, 4, here), block_shuffle(x, 4, there))
    drawn = [Clock(seed=3), Clock(seed=4), Clock(seed=3, epoch=1), Clock(seed=3, step=1), Clock(seed=3, round=1)]
    assert len({tuple(block_shuffle(x, 4, clock).flatten().tolist()) for clock in drawn}) == 5


@pytest.mark.parametrize(("transfer", "blocks"), [(0.0, 2), (0.5, 2), (1.5, 3)])
@pytest.mark.parametrize("kind", BOTH)
def test_loss_is_the_formula(kind: type[Rlfat | RlfatTrades], transfer: float, blocks: int) -> None:
    method = make(kind, transfer=transfer, blocks=blocks)
    batch = prepared(method, step=1)
    shuffled = torch.tensor([slow_shuffle(image, blocks, method.clock) for image in batch.x_adv], dtype=torch.float64)
    assert not torch.equal(shuffled, batch.x_adv)
    moved, whole, clean = method.model(shuffled), method.model(batch.x_adv), method.model(batch.x)
    pairs = zip(moved.tolist(), whole.tolist(), strict=True)
    gap = reference.mean([sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in pairs])
    if kind is Rlfat:
        expected = reference.mean(reference.ce(moved, batch.y))
    else:
        kl = reference.mean(reference.kl(clean, moved))
        expected = reference.mean(reference.ce(clean, batch.y)) + 6.0 * kl
        assert method.loss(batch).terms["kl"].item() == pytest.approx(kl, abs=1e-12)
    loss = method.loss(batch)
    assert gap > 1e-5 and loss.terms["transfer"].item() == pytest.approx(gap, abs=1e-12)
    assert loss.total.item() == pytest.approx(expected + transfer * gap, abs=1e-12)
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        (moved.argmax(1) == batch.y).double().mean().item()
    )


@pytest.mark.parametrize("kind", BOTH)
def test_gradient_flows_through_both_sides_of_the_distance(kind: type[Rlfat | RlfatTrades]) -> None:
    method = make(kind, transfer=50.0)
    batch = prepared(method, step=1)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(("kind", "base"), [(Rlfat, PgdAt), (RlfatTrades, Trades)])
def test_one_block_is_the_base_to_the_bit(kind: type[Rlfat | RlfatTrades], base: type[PgdAt | Trades]) -> None:
    given, method = worlds.data(), make(kind, blocks=1)
    other = base(worlds.cnn(), worlds.attack(start=START[kind]))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


@pytest.mark.parametrize(("kind", "base"), [(Rlfat, PgdAt), (RlfatTrades, Trades)])
def test_the_attack_is_the_bases_on_unshuffled_images(
    kind: type[Rlfat | RlfatTrades], base: type[PgdAt | Trades]
) -> None:
    other = base(worlds.cnn(), worlds.attack(start=START[kind]))
    assert torch.equal(prepared(make(kind)).x_adv, prepared(other).x_adv)


@pytest.mark.parametrize("kind", BOTH)
def test_distance_vanishes_where_nothing_is_shuffled(kind: type[Rlfat | RlfatTrades]) -> None:
    """With running statistics; those of the batch are the same here as well, for it is the same batch."""
    method, given = make(kind, norm="batch"), worlds.data()
    gaps, still = [], []
    for step in range(given.steps * 3):
        batch = prepared(method, given, step % given.steps)
        method.clock.epoch = step // given.steps
        method.eval()
        gaps.append(method.loss(batch).terms["transfer"].item())
        still.append(torch.equal(block_shuffle(batch.x_adv, 2, method.clock), batch.x_adv))
    assert [gap == 0 for gap in gaps] == still and 0 < sum(still) < len(still)


@pytest.mark.parametrize("kind", BOTH)
def test_statistics_move_with_the_attack_and_with_each_forward(kind: type[Rlfat | RlfatTrades]) -> None:
    """attack.bn=train, the authors': 3 passes of the attack (TRADES: 4); then 2 forwards (TRADES: 3)."""
    method = make(kind, norm="batch", bn="train")
    batch = prepared(method)
    method.loss(batch)
    counts = {value.item() for name, value in method.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == ({3 + 2} if kind is Rlfat else {4 + 3})


@pytest.mark.parametrize("kind", BOTH)
def test_contract(kind: type[Rlfat | RlfatTrades]) -> None:
    given, method = worlds.data(), make(kind)
    worlds.start(method, given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(kind), given)
    worlds.check_ranks(lambda _: make(kind))
