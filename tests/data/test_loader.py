"""The loader: position = f(seed, epoch, step); ranks share the batch, the pool hides labels, the test split is shut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atbench.data import Images, PadCropFlip, Shard, Source, TrainData
from atbench.data.loader import PermutationSampler
from atbench.errors import ConfigError
from tests.support.batches import epoch_of, equal
from tests.support.worlds import data, source


def shut() -> Source:
    """A source whose test split must not be opened."""

    def test() -> Images:
        raise AssertionError("training opened the test split")

    return replace(source(), test=test)


def test_an_epoch_is_a_fresh_permutation() -> None:
    given = data(shut(), batch_size=12)
    assert given.steps == 4
    orders = [torch.cat([batch.index for batch in epoch_of(given, epoch)]) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(48))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])


def test_a_last_incomplete_batch_is_left_out() -> None:
    given = data(batch_size=10)
    index = torch.cat([batch.index for batch in epoch_of(given, 0)])
    assert given.steps == 4 and len(index.unique()) == 40


def test_images_and_labels_belong_to_their_index() -> None:
    given = data()
    batch = given.batch(1, 2)
    assert torch.equal(batch.x, given.train.x[batch.index].double() / 255) and torch.equal(
        batch.y, given.train.y[batch.index]
    )
    assert batch.view is None and batch.extra is None and batch.x.dtype == torch.float64


def test_position_is_a_function_of_seed_epoch_and_step() -> None:
    """Asked in any order, by a loader that has done something else before."""
    given, resumed = (data(augment=PadCropFlip(1, True)) for _ in range(2))
    first = {(epoch, step): given.batch(epoch, step) for epoch in range(3) for step in range(given.steps)}
    for epoch, step in reversed(list(first)):
        assert equal(resumed.batch(epoch, step), first[epoch, step])
    assert not equal(data(augment=PadCropFlip(1, True), seed=1).batch(0, 0), first[0, 0])


def test_augmentation_is_fresh_at_every_visit_and_known() -> None:
    given = data(augment=PadCropFlip(1, True))
    batch = given.batch(0, 0)
    assert batch.view is not None
    assert torch.equal(batch.view.apply(given.train.floats(batch.index, torch.float64)), batch.x)
    views = [given.batch(epoch, 0).view for epoch in range(4)]
    assert len({tuple(view.top.tolist()) for view in views if view}) == 4


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("options", [{}, {"labelled": 0.5, "extra": 0.5}], ids=["plain", "pool"])
def test_ranks_partition_the_joint_batch(world: int, options: dict[str, float]) -> None:
    augment = PadCropFlip(1, True)
    whole = data(augment=augment, **options)
    ranks = [data(augment=augment, shard=Shard(rank, world), **options) for rank in range(world)]
    for epoch, step in ((0, 0), (1, 3)):
        joint, parts = whole.batch(epoch, step), [given.batch(epoch, step) for given in ranks]
        assert torch.equal(torch.cat([part.x for part in parts]), joint.x)
        assert torch.equal(torch.cat([part.index for part in parts]), joint.index)
        if joint.extra is not None:
            extras = [part.extra for part in parts]
            assert torch.equal(torch.cat([extra.x for extra in extras if extra]), joint.extra.x)
        streams = [given.stream("other", 12).batch(epoch, step).x for given in ranks]
        assert torch.equal(torch.cat(streams), whole.stream("other", 12).batch(epoch, step).x)


def test_validation_is_held_out() -> None:
    origin = shut()
    given = TrainData(origin, 12, 0)
    assert len(given.validation) == 12 and len(given.train) == 48
    held, kept = ({image.numpy().tobytes() for image in images.x} for images in (given.validation, given.train))
    assert not held & kept and len(held | kept) == 60
    other = TrainData(origin, 12, 99)
    assert torch.equal(other.validation.x, given.validation.x)  # a run's seed moves no split


def test_the_pool_hides_its_labels_and_shares_no_image() -> None:
    given = data(shut(), labelled=0.25, extra=0.5)
    assert given.pool is not None and (given.pool.y == -1).all()
    assert len(given.train) == 12 and len(given.pool) == 36 and given.steps == 4
    pool, train = ({image.numpy().tobytes() for image in images.x} for images in (given.pool, given.train))
    assert not pool & train
    assert torch.equal(torch.bincount(given.train.y), torch.tensor([4, 4, 4]))
    batch = given.batch(0, 0)
    assert len(batch) == 6 and batch.extra is not None and len(batch.extra) == 6 and (batch.extra.y == -1).all()
    assert torch.equal(batch.extra.x, given.pool.floats(batch.extra.index, torch.float64))


def test_labelled_and_pool_are_walked_through_evenly() -> None:
    given = data(labelled=0.25, extra=0.5)
    batches = [batch for epoch in range(3) for batch in epoch_of(given, epoch)]
    labelled = torch.cat([batch.index for batch in batches])
    pool = torch.cat([batch.extra.index for batch in batches if batch.extra])
    for index, size in ((labelled, 12), (pool, 36)):
        for turn in index.split(size):
            assert torch.equal(turn.sort().values, torch.arange(size))


def test_a_pool_that_no_batch_asks_for() -> None:
    given = data(labelled=0.5)
    assert given.pool is not None and given.batch(0, 0).extra is None and len(given.batch(0, 0)) == 12


@pytest.mark.parametrize("n", [1, 5, 12])
def test_endless_is_one_permutation_after_the_other(n: int) -> None:
    rows = PermutationSampler(n, 0, "x").rows(0, 4 * n)
    for turn in rows.split(n):
        assert torch.equal(turn.sort().values, torch.arange(n))
    for start, count in ((0, 1), (n - 1, 3), (2 * n, n), (1, 3 * n - 1)):
        assert torch.equal(PermutationSampler(n, 0, "x").rows(start, count), rows[start : start + count])


def test_streams_are_independent_of_each_other_and_of_the_batches() -> None:
    given = data(augment=PadCropFlip(1, True))
    before = given.batch(0, 1)
    first, second = given.stream("a", 12), given.stream("b", 5)
    a, b = first.batch(0, 1), second.batch(0, 1)
    assert len(a) == 12 and len(b) == 5
    assert not torch.equal(a.index, before.index) and not torch.equal(a.index[:5], b.index)
    assert equal(given.batch(0, 1), before) and equal(given.stream("a", 12).batch(0, 1), a)
    order = torch.cat([first.batch(0, step).index for step in range(given.steps)])
    assert torch.equal(order.sort().values, torch.arange(48))


def test_fit_sample_is_fixed_and_from_the_train_part() -> None:
    given = data()
    assert torch.equal(given.fit_sample(10).x, data(seed=5).fit_sample(10).x)
    train = {image.numpy().tobytes() for image in given.train.x}
    assert all(image.numpy().tobytes() in train for image in given.fit_sample(20).x)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"batch_size": 49}, "train.batch_size"),
        ({"shard": Shard(0, 5)}, "train.batch_size"),
        ({"labelled": 0.5, "extra": 0.25, "shard": Shard(0, 2)}, "train.batch_size"),
        ({"extra": 0.5}, "train.extra_data.fraction"),
        ({"labelled": 0.5, "extra": 1.0}, "train.extra_data.fraction"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        data(**options)  # type: ignore[arg-type]


def test_training_never_opens_the_test_split() -> None:
    given = data(shut(), labelled=0.5, extra=0.5, augment=PadCropFlip(1, True))
    epoch_of(given, 0)
    given.stream("a", 12).batch(0, 0)
    given.fit_sample(3)
    given.source.train.sha256()
