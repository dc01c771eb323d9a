"""Splits: exact sizes, every class in proportion, disjoint, always the same; impossible data is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atbench.data import Images
from atbench.data.dataset import check_dataset, stratified, stratified_subset
from atbench.data.digits import digits
from atbench.errors import DataError
from tests.support.worlds import source

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("sizes", [(10,), (7, 13), (0,), (99, 1), (1, 1, 1)])
def test_parts_are_disjoint_exact_and_complete(sizes: tuple[int, ...]) -> None:
    parts = stratified(LABELS, sizes, seed=0)
    assert [len(part) for part in parts] == [*sizes, 100 - sum(sizes)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))


@pytest.mark.parametrize("size", [7, 10, 33])
def test_classes_keep_their_proportion(size: int) -> None:
    part = stratified(LABELS, (size,), seed=0)[0]
    count = torch.bincount(LABELS[part], minlength=3)
    assert (count - size * torch.tensor([0.5, 0.3, 0.2])).abs().max() < 1


def test_splits_depend_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (stratified(LABELS, (20,), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_checksum_sees_pixels_labels_and_shape() -> None:
    images = source().train
    x, y = images.x.clone(), images.y.clone()
    x[0, 0, 0, 0] += 1
    y[[0, 1]] = y[[1, 0]]
    variants = [images, Images(x, images.y), Images(images.x, y), Images(images.x.view(-1, 1, 4, 16), images.y)]
    assert len({each.sha256() for each in variants}) == 4
    assert Images(images.x.clone(), images.y.clone()).sha256() == images.sha256()


def test_floats_are_the_grey_levels() -> None:
    images = Images(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(images.floats(dtype=torch.float64).flatten(), torch.arange(256, dtype=torch.float64) / 255)
    assert torch.equal(images.floats(torch.tensor([2])), images.floats()[2:3])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"x": torch.rand(6, 1, 8, 8)}, "uint8"),
        ({"x": torch.zeros(6, 8, 8, dtype=torch.uint8)}, "uint8"),
        ({"y": torch.zeros(6, dtype=torch.int32)}, "int64"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "int64"),
        ({"y": torch.tensor([0, 1, 2, 3, 0, 1])}, "label 3"),
        ({"y": torch.tensor([0, 1, 2, -1, 0, 1])}, "label -1"),
        ({"y": torch.tensor([0, 1, 0, 1, 0, 1])}, "class 2"),
    ],
)
def test_wrong_data_is_refused(change: dict[str, torch.Tensor], why: str) -> None:
    good = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.arange(6) % 3)
    check_dataset("good", good, 3)
    with pytest.raises(DataError, match=why):
        check_dataset("bad", replace(good, **change), 3)


def test_digits_is_split_once_and_for_all() -> None:
    first = digits()
    test = first.test()
    assert (len(first.train), len(test), first.validation, first.shape) == (1347, 450, 200, (1, 8, 8))
    train, tested = ({row.tobytes() for row in images.x.numpy()} for images in (first.train, test))
    assert not train & tested and len(train) + len(tested) == 1797  # no picture occurs twice
    assert first.train.x.max() == 255 and first.train.x.min() == 0
    pixels = first.train.floats()
    assert pixels.mean().item() == pytest.approx(first.mean[0], abs=2e-3)
    assert pixels.std().item() == pytest.approx(first.std[0], abs=2e-3)


SORTED = torch.arange(20).repeat_interleave(torch.tensor([40] * 15 + [8] * 5))


@pytest.mark.parametrize("n", [1, 7, 20, 32, 64, 333, 640, 700])
def test_a_sample_of_sorted_data_has_every_class_in_proportion(n: int) -> None:
    rows = stratified_subset(SORTED, n)
    assert len(rows) == min(n, 640) and (rows.diff() > 0).all()
    share = torch.bincount(SORTED, minlength=20) * min(n, 640) / 640
    assert (torch.bincount(SORTED[rows], minlength=20) - share).abs().max() < 1.01


def test_samples_are_nested_drawn_and_always_the_same() -> None:
    small, large = stratified_subset(SORTED, 30), stratified_subset(SORTED, 100)
    assert torch.isin(small, large).all() and torch.equal(small, stratified_subset(SORTED, 30))
    assert not torch.equal(small, stratified_subset(SORTED, 30, seed=1))
    assert not torch.equal(SORTED[stratified_subset(SORTED, 10)], torch.arange(10)), "not the first ten classes"
    places = {int(row) % 40 for row in large[SORTED[large] < 15]}
    assert len(places) > 20, "of a class any of its examples"


def test_a_sample_of_a_sample_knows_its_places() -> None:
    images = source().train
    part = images.sample(40).sample(10).to(torch.device("cpu"))
    assert part.index is not None and torch.equal(images.y[part.index], part.y)
    assert torch.equal(images.x[part.index], part.x)
    assert torch.equal(part.indices(torch.tensor([3, 1])), part.index[[3, 1]])
    assert images.sample(len(images)) is images
