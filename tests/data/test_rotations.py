"""Quarter turns as labels: pixels, labels, and a split that separates images and not copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atbench.data import Images
from atbench.data.lazy_images import DecoderPool, LazyImages
from atbench.data.rotations import rotated, with_labels
from atbench.errors import ConfigError
from tests.support import worlds

BASE = worlds.source(classes=2)


def test_every_image_is_there_in_four_turns_that_are_its_labels() -> None:
    turned = rotated(BASE)
    assert len(turned.train) == 4 * len(BASE.train) and len(turned.classes) == 4 and turned.shape == BASE.shape
    for k in range(4):
        rows = turned.train.y == k
        assert torch.equal(turned.train.x[rows].rot90(-k, (2, 3)), BASE.train.x)
    assert torch.equal(turned.train.x[len(BASE.train)][:, -1], BASE.train.x[0][:, :, 0]), "left becomes bottom"
    assert torch.equal(turned.test().x, turned.train.x), "this world's test split is its train split"
    assert (turned.mean, turned.std) == (BASE.mean, BASE.std)


def test_no_copy_of_a_held_out_image_is_trained_on() -> None:
    (held, kept), (base_held, base_kept) = rotated(BASE).split_indices(), BASE.split_indices()
    n = len(BASE.train)
    assert sorted((held % n).unique().tolist()) == base_held.tolist() and len(held) == 4 * len(base_held)
    assert sorted((kept % n).unique().tolist()) == base_kept.tolist() and len(kept) == 4 * len(base_kept)
    assert len(worlds.data(rotated(BASE)).validation) == rotated(BASE).validation == len(held)


def test_its_own_classes_are_left_alone() -> None:
    assert with_labels(BASE, "classes") is BASE


def test_what_cannot_be_turned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.labels.*use one of classes, rotations"):
        with_labels(BASE, "colours")
    with pytest.raises(ConfigError, match=r"dataset\.labels.*square"):
        rotated(worlds.source(shape=(1, 8, 12)))
    pictures = LazyImages(["a.png"] * 60, 8, 8, 0.0, DecoderPool(1))
    with pytest.raises(ConfigError, match=r"dataset\.labels.*decoded"):
        rotated(replace(BASE, train=Images(pictures, BASE.train.y)))
