"""Further images of each example: the run's augmentation once more, behind one of the method's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from atbench.config.instantiate import build
from atbench.data import Augment, Brightness, Chain, CutMix, Cutout, PadCropFlip, Shard, TrainData
from atbench.errors import ConfigError
from atbench.runs.seeding import Draws, generator
from tests.support.batches import equal
from tests.support.worlds import data

BEFORE: Sequence[Augment | None] = (Cutout(4), Brightness(0.5, 0.9), None, None)
CROP = PadCropFlip(1, True)


def viewed(augment: Augment | None = CROP, **options: Any) -> TrainData:
    given = data(augment=augment, **options)
    given.set_views(BEFORE)
    return given


@pytest.mark.parametrize("augment", [CROP, None], ids=["crop", "plain"])
def test_a_view_is_the_run_s_augmentation_behind_the_method_s(augment: Augment | None) -> None:
    given = viewed(augment)
    batch = given.batch(1, 2)
    pixels = given.train.floats(batch.index, torch.float64)
    assert len(batch.views) == 4
    for place, (before, view) in enumerate(zip(BEFORE, batch.views, strict=True)):
        whole = Chain([each for each in (before, augment) if each is not None])
        expected, _ = whole(pixels, Draws(generator("cpu", 0, "view", "main", 1, 2, place)))
        assert torch.equal(view, expected)
    images = [batch.x, *batch.views]
    differ = [not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i]]
    assert sum(differ) == (10 if augment else 7), "each has numbers of its own; nothing is drawn without augmentation"


def test_the_batch_is_what_it_is_without_views() -> None:
    plain, given = data(augment=CROP, labelled=0.5, extra=0.5), viewed(labelled=0.5, extra=0.5)
    a, b = plain.batch(1, 1), given.batch(1, 1)
    assert equal(a, b) and torch.equal(a.view.top, b.view.top) and not a.views and len(b.views[0]) == len(b)  # type: ignore[union-attr]
    assert a.extra is not None and b.extra is not None and equal(a.extra, b.extra) and not b.extra.views
    assert not given.stream("other", 12).batch(0, 0).views


def test_position_is_a_function_of_seed_epoch_and_step() -> None:
    given, resumed = viewed(), viewed()
    first = {(epoch, step): given.batch(epoch, step).views for epoch in range(2) for step in range(given.steps)}
    for place, views in reversed(first.items()):
        assert all(map(torch.equal, resumed.batch(*place).views, views))
    assert not torch.equal(viewed(seed=1).batch(0, 0).views[3], first[0, 0][3])


def test_ranks_see_the_rows_of_one() -> None:
    ranks = [viewed(shard=Shard(rank, 2)).batch(1, 3).views for rank in range(2)]
    for whole, *parts in zip(viewed().batch(1, 3).views, *ranks, strict=True):
        assert torch.equal(torch.cat(parts), whole)


def test_mixed_images_are_refused() -> None:
    given = data(mix=CutMix(1.0))
    given.set_views([])
    with pytest.raises(ConfigError, match=r"dataset\.augment: CutMix .* images of one example"):
        given.set_views([None])


def test_a_method_s_node_may_name_augmentations() -> None:
    node = {
        "_target_": "atbench.data.augment.Chain",
        "steps": [{"_target_": "atbench.data.augment.Cutout", "length": 2}],
    }
    built = build(node, "method.views.0")
    assert isinstance(built.steps[0], Cutout)
