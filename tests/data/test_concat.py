"""Further images with labels: ordinary rows of every batch, in fixed shares, for methods that know nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atbench.data import Batch, CutMix, Images, PadCropFlip, Shard, TrainData
from atbench.data.concat import ConcatImages
from atbench.data.digits import digits
from atbench.data.extra_data import load_extra_data
from atbench.data.image_folder import folder
from atbench.errors import ConfigError, DataError
from atbench.methods import Method
from atbench.methods.fgsm_mep import FgsmMep
from atbench.methods.rst import Rst
from atbench.methods.trades import Trades
from atbench.training import World
from atbench.workflows import factory
from tests.support import worlds
from tests.support.batches import epoch_of, equal
from tests.support.class_folders import SIDE, trees
from tests.support.configs import resolved
from tests.support.contract import configuration

SHAPE = (1, 8, 8)
ORIGINALS, GENERATED = 48, 100


def generated(n: int = GENERATED) -> Images:
    rng = torch.Generator().manual_seed(1)
    return Images(torch.randint(0, 256, (n, *SHAPE), generator=rng, dtype=torch.uint8), torch.arange(n) % 3)


def data(extra: float = 0.3, **options: Any) -> TrainData:
    """Batches of 12: 9 of the 48 originals and 3 of the 100 generated images, 3.6 rounded down."""
    return worlds.data(**{"pool": generated(), "extra": extra, **options})


def archive(path: Path, **arrays: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(path, **{"image": image, "label": np.arange(50) % 3, **arrays})
    return image


class TestBatches:
    @pytest.mark.parametrize(("extra", "more"), [(0.3, 3), (0.5, 6), (0.7, 8), (0.25, 3), (0.9, 10)])
    def test_each_has_its_share_of_both(self, extra: float, more: int) -> None:
        given = data(extra)
        assert given.steps == worlds.data().steps == 4, "no further image makes an epoch longer"
        for batch in epoch_of(given, 0) + epoch_of(given, 3):
            assert len(batch) == 12 and batch.extra is None and int((batch.index >= ORIGINALS).sum()) == more

    @pytest.mark.parametrize("extra", [0.3, 0.7])
    def test_both_are_walked_through_in_permutations(self, extra: float) -> None:
        """After any batch no image of a part was seen more than once oftener than another one of it."""
        given = data(extra)
        seen = torch.zeros(ORIGINALS + GENERATED, dtype=torch.long)
        for batch in (batch for epoch in range(20) for batch in epoch_of(given, epoch)):
            assert len(batch.index.unique()) >= 11  # where a pass ends, its last and the next one's first may be one
            seen += torch.bincount(batch.index, minlength=len(seen))
            for part in (seen[:ORIGINALS], seen[ORIGINALS:]):
                assert part.max() - part.min() <= 1
        assert seen[:ORIGINALS].min() >= 5 and seen[ORIGINALS:].min() >= 2

    def test_every_pass_has_a_new_order(self) -> None:
        """At one half eight batches hold each original once."""
        given = data(0.5)
        sets = [given.batch(epoch, 0).index for epoch in (0, 2, 4)]
        first = [tuple(index[index < ORIGINALS].sort().values.tolist()) for index in sets]
        assert len(set(first)) == 3

    def test_neither_part_has_a_place_of_its_own(self) -> None:
        """A method's choice of rows, and a process, gets both."""
        given = data(0.5)
        behind = torch.stack([b.index >= ORIGINALS for epoch in range(30) for b in epoch_of(given, epoch)])
        share = behind.double().mean(dim=0)
        assert len(share) == 12 and (share - 0.5).abs().max() < 0.2

    def test_images_and_labels_belong_to_their_index(self) -> None:
        given, more = data(), generated()
        x, y = torch.cat([worlds.data().train.x, more.x]), torch.cat([worlds.data().train.y, more.y])
        batch = given.batch(1, 2)
        assert torch.equal(batch.x, x[batch.index].double() / 255) and torch.equal(batch.y, y[batch.index])
        assert torch.equal(given.train.y, y) and len(given.train) == ORIGINALS + GENERATED and given.pool is None

    def test_position_is_a_function_of_seed_epoch_and_step(self) -> None:
        given, resumed = (data(augment=PadCropFlip(1, True)) for _ in range(2))
        first = {(epoch, step): given.batch(epoch, step) for epoch in range(3) for step in range(given.steps)}
        for epoch, step in reversed(list(first)):
            assert equal(resumed.batch(epoch, step), first[epoch, step])
        assert not equal(data(augment=PadCropFlip(1, True), seed=1).batch(0, 0), first[0, 0])

    @pytest.mark.parametrize("world", [2, 3])
    @pytest.mark.parametrize("mix", [None, CutMix(1.0)], ids=["plain", "mixed"])
    def test_processes_together_have_what_one_would(self, world: int, mix: CutMix | None) -> None:
        """Three generated images of twelve need not split evenly."""
        options = {"augment": PadCropFlip(1, True), "mix": mix}
        joint = data(**options).batch(1, 2)
        parts = [data(shard=Shard(rank, world), **options).batch(1, 2) for rank in range(world)]
        for name in ("x", "y", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(joint, name))

    def test_mixtures_are_of_both_kinds(self) -> None:
        """Partners come from the joint batch."""
        given = data(0.5, mix=CutMix(1.0))
        plain = data(0.5)
        across = 0
        for step in range(given.steps):
            mixed, before = given.batch(0, step), plain.batch(0, step)
            assert mixed.y.shape == (12, 3) and torch.equal(mixed.index, before.index)
            changed = (mixed.x != before.x) & (before.index < ORIGINALS)[:, None, None, None]
            theirs = {float(pixel) for pixel in before.x[before.index >= ORIGINALS].flatten()}
            across += sum(float(pixel) in theirs for pixel in mixed.x[changed])
        assert across > 0

    def test_without_a_share_it_is_the_run_without_them(self) -> None:
        given, plain = data(extra=0.0), worlds.data()
        assert len(given.train) == ORIGINALS and given.pool is None
        for epoch in range(2):
            assert all(equal(a, b) for a, b in zip(epoch_of(given, epoch), epoch_of(plain, epoch), strict=True))

    def test_streams_have_the_same_share(self) -> None:
        given = data(0.5)
        first, second = given.stream("a", 12).batch(0, 1), given.stream("b", 12).batch(0, 1)
        assert int((first.index >= ORIGINALS).sum()) == int((second.index >= ORIGINALS).sum()) == 6
        assert not torch.equal(first.index, second.index)
        assert len(given.stream("one", 1).batch(0, 0)) == 1

    def test_selection_sees_the_data_set_alone(self) -> None:
        given, plain = data(), worlds.data()
        assert torch.equal(given.validation.x, plain.validation.x)
        assert torch.equal(given.fit_sample(20).x, plain.fit_sample(20).x)


class TestMethods:
    def test_two_processes_are_one(self) -> None:
        def make(given: TrainData) -> Method:
            return Trades(worlds.cnn(), worlds.attack(start="gaussian"))

        worlds.check_ranks(make, pool=generated(), extra=0.3)

    def test_tables_have_a_row_for_each(self) -> None:
        given = data()

        def make() -> FgsmMep:
            method = FgsmMep(worlds.cnn(), worlds.attack())
            method.setup(given)
            return method

        method = make()
        assert len(method.delta) == ORIGINALS + GENERATED
        worlds.steps(method, given, 2)
        seen = torch.cat([given.batch(0, step).index for step in range(2)])
        assert (seen >= ORIGINALS).sum() == 6
        touched = method.memory.flatten(1).abs().sum(dim=1) > 0
        assert torch.equal(touched.nonzero().squeeze(1), seen.sort().values)
        worlds.check_resume(make, given)

    def test_a_method_for_unlabelled_images_is_told_that_there_are_none(self) -> None:
        with pytest.raises(ConfigError, match="unlabelled pool"):
            Rst(worlds.cnn(), worlds.attack()).setup(data())


class TestArchives:
    def test_labels_are_read_and_pixels_are_not_copied(self, tmp_path: Path) -> None:
        image = archive(tmp_path / "more.npz")
        pool = load_extra_data(tmp_path, "more.npz", SHAPE, classes=3)
        assert torch.equal(pool.y, torch.arange(50) % 3)
        assert isinstance(pool.x, torch.Tensor) and torch.equal(pool.x[:, 0], torch.from_numpy(image[..., 0]))
        colour = archive(tmp_path / "colour.npz", image=np.repeat(image, 3, axis=3))
        view = load_extra_data(tmp_path, "colour.npz", (3, 8, 8), classes=3).x
        assert len(colour) == len(view) and isinstance(view, torch.Tensor)
        assert view.permute(0, 2, 3, 1).is_contiguous(), "as the file has them"
        given = worlds.data(pool=pool, extra=0.5)
        assert isinstance(given.train.x, ConcatImages) and given.train.x.second.data_ptr() == pool.x.data_ptr()

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"label": np.arange(50) % 4}, r"label 3.*classes 0 to 2"),
            ({"label": np.arange(50) % 3 - 1}, "label -1.*start at 0"),
            ({"label": np.zeros(49, np.int64)}, "49 labels.*50 images"),
            ({"label": np.zeros(50)}, "float64.*int64"),
        ],
        ids=["too many", "negative", "too few", "no integers"],
    )
    def test_labels_that_do_not_fit_are_refused(self, tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
        archive(tmp_path / "more.npz", **arrays)
        with pytest.raises(DataError, match=says):
            load_extra_data(tmp_path, "more.npz", SHAPE, classes=3)

    def test_labels_that_are_not_there_are_missed(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "more.npz", image=np.zeros((5, 8, 8, 1), np.uint8))
        with pytest.raises(DataError, match=r"more\.npz.*no array 'label', only image"):
            load_extra_data(tmp_path, "more.npz", SHAPE, classes=3)
        assert (load_extra_data(tmp_path, "more.npz", SHAPE).y == -1).all()
        trees(tmp_path / "folder", 1)
        with pytest.raises(DataError, match="folder has no labels"):
            load_extra_data(tmp_path, "folder", (3, 8, 8), classes=3)

    def test_two_tensors_are_read_as_one(self) -> None:
        first, second = generated(7).x, generated(5).x
        assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        both, whole = ConcatImages(first, second), torch.cat([first, second])
        rows = torch.tensor([0, 6, 7, 11, 3, 7])
        assert torch.equal(both[rows], whole[rows]) and torch.equal(both[2:9], whole[2:9])
        assert both.shape == whole.shape and both.dtype == whole.dtype and both.ndim == 4
        assert torch.equal(both.to(torch.device("cpu"))[:], whole)
        assert Images(both, torch.zeros(12)).sha256() == Images(whole, torch.zeros(12)).sha256()


class TestConfiguration:
    def test_they_are_asked_for_by_path_and_labels(self, tmp_path: Path) -> None:
        archive(tmp_path / "more.npz")
        words = ["train.extra_data.path=more.npz", "train.extra_data.labels=true", "train.extra_data.fraction=0.7"]
        cfg = configuration("trades", *words, f"data_dir={tmp_path}")
        given = factory.make_data(cfg, worlds.source(), World(torch.device("cpu")))
        batch: Batch = given.batch(0, 0)
        assert len(batch) == 16 and int((batch.index >= ORIGINALS).sum()) == 11 and given.generated == 50

    def test_labels_of_nothing_are_refused(self) -> None:
        cfg = resolved("train.extra_data.labels=true")
        with pytest.raises(ConfigError, match=r"train\.extra_data\.labels: True.*train\.extra_data\.path"):
            factory.make_pool(cfg, digits())

    def test_images_that_are_decoded_as_they_are_asked_for_are_refused(self, tmp_path: Path) -> None:
        trees(tmp_path / "trees")
        more = Images(torch.zeros((4, 3, SIDE, SIDE), dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
        for memory in (1.0, 1e-9):
            origin = folder(tmp_path, "trees", SIDE, memory=memory, validation=6, test=9)
            if memory == 1.0:
                assert len(TrainData(origin, 8, 0, pool=more, extra=0.25).train) == 49
                continue
            with pytest.raises(ConfigError, match=r"dataset\.source\.memory"):
                TrainData(origin, 8, 0, pool=more, extra=0.25)
